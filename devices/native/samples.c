#include "samples.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One output on its way into a file: the parts are joined along the first axis. */
typedef struct {
    size_t port;
    FILE *file;
    Tensor last; /* of the shape that all parts have but for the first axis; without data */
    int64_t rows;
} Sink;

static bool open_sinks(Sink *sinks, const Slot *slot, const Json *out, Fault *fault) {
    Sink *sink = sinks;
    for (const Json *entry = out->first; entry; entry = entry->next, sink++) {
        while (sink->port < slot->outputs.count && strcmp(slot->outputs.names[sink->port], entry->key) != 0)
            sink->port++;
        if (sink->port == slot->outputs.count)
            return fail(fault, "internal", "", "the artifact has no output %.100s", entry->key);
        if (entry->kind != JSON_STRING)
            return fail(fault, "internal", "", "\"out\" in the request is not name to file");
        if (!(sink->file = fopen(entry->text, "wb")))
            return fail(fault, "user", "", "%.300s can't be written: %s", entry->text, strerror(errno));
    }
    return true;
}

static bool add_part(Sink *sink, Slot *slot, Fault *fault) {
    Tensor part;
    if (!session_output(slot->session, sink->port, &part, fault))
        return false;
    bool fits = part.rank > 0 && (!sink->rows || (sink->last.rank == part.rank && memcmp(sink->last.shape + 1, part.shape + 1, sizeof(int32_t) * (size_t)(part.rank - 1)) == 0));
    bool good = fits ? fwrite(part.data, 1, part.bytes, sink->file) == part.bytes || fail(fault, "user", "is the disk full?", "an output can't be written: %s", strerror(errno))
                     : fail(fault, "internal", "", "the parts of an output can't be joined");
    tensor_free(&part);
    sink->last = part;
    sink->rows += part.shape[0];
    return good;
}

/* The samples from `start` on of every input that has `samples` of them; the others whole. */
static void slice(Tensor *part, const Tensor *whole, size_t inputs, int32_t samples, int32_t start, int32_t count) {
    for (size_t k = 0; k < inputs; k++) {
        part[k] = whole[k];
        if (whole[k].rank < 1 || whole[k].shape[0] != samples)
            continue;
        size_t row = whole[k].bytes / (size_t)samples;
        part[k].shape[0] = count;
        part[k].count = whole[k].count / (size_t)samples * (size_t)count;
        part[k].bytes = row * (size_t)count;
        part[k].data = whole[k].data + row * (size_t)start;
    }
}

static bool all_parts(Slot *slot, const Tensor *whole, Sink *sinks, size_t count, Fault *fault) {
    size_t inputs = slot->inputs.count;
    int32_t samples = whole[0].rank ? whole[0].shape[0] : 0, batch = slot->feed[0][0].rank ? slot->feed[0][0].shape[0] : 0;
    if (samples < 1 || batch < 1)
        return fail(fault, "internal", "", "there are no samples to run");
    Tensor *part = must_have(inputs * sizeof *part);
    bool good = true;
    for (int32_t start = 0; good && start < samples; start += batch) {
        int32_t size = samples - start < batch ? samples - start : batch;
        slice(part, whole, inputs, samples, start, size);
        good = session_feed(slot->session, part, fault) && session_invoked(slot->session, fault);
        for (size_t k = 0; good && k < count; k++)
            good = add_part(&sinks[k], slot, fault);
    }
    free(part);
    return good;
}

bool run_samples(Slot *slot, const Json *request, Text *text, Fault *fault) {
    const Json *told, *out;
    if (!json_need(request, "feed", JSON_OBJECT, &told, fault) || !json_need(request, "out", JSON_OBJECT, &out, fault))
        return false;
    Tensor *whole = feed_read(&slot->inputs, told, fault);
    if (!whole)
        return false;
    Sink *sinks = must_have(out->count * sizeof *sinks);
    bool good = open_sinks(sinks, slot, out, fault) && all_parts(slot, whole, sinks, out->count, fault);
    for (size_t k = 0; k < out->count; k++)
        if (sinks[k].file && fclose(sinks[k].file) != 0 && good)
            good = fail(fault, "user", "is the disk full?", "an output can't be written: %s", strerror(errno));
    text_add(text, "\"outputs\": {");
    const Json *entry = out->first;
    for (size_t k = 0; good && k < out->count; k++, entry = entry->next) {
        sinks[k].last.shape[0] = (int32_t)sinks[k].rows;
        text_quote(text, entry->key);
        text_add(text, ": {\"shape\": ");
        text_shape(text, &sinks[k].last);
        text_format(text, ", \"dtype\": \"%s\"}%s", sinks[k].last.dtype->name, entry->next ? ", " : "");
    }
    text_add(text, "}");
    free(sinks);
    feed_free(whole, &slot->inputs);
    return good && session_feed(slot->session, slot->feed[0], fault); /* so that what is timed next is bound again */
}
