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

static int32_t rows_of(const Tensor *tensor) {
    return tensor->rank ? tensor->shape[0] : 0;
}

/* Of an input that has more rows than the loaded one, the `turn`-th part of as many rows as that. */
static Tensor part_of(const Tensor *whole, const Tensor *loaded, int32_t turn) {
    Tensor part = *whole;
    int32_t rows = rows_of(loaded), all = rows_of(whole);
    if (all == rows)
        return part;
    part.shape[0] = rows;
    part.count = whole->count / (size_t)all * (size_t)rows;
    part.bytes = whole->bytes / (size_t)all * (size_t)rows;
    part.data = whole->data + part.bytes * (size_t)turn;
    return part;
}

/* How often the loaded feed's rows go into those that are given; 0 and a fault when they don't, or not equally often. */
static int32_t turns_of(const Tensor *whole, const Tensor *loaded, size_t inputs, Fault *fault) {
    int32_t turns = 0;
    for (size_t k = 0; k < inputs; k++) {
        int32_t rows = rows_of(&loaded[k]), all = rows_of(&whole[k]);
        if (all == rows)
            continue;
        if (rows < 1 || all < 1 || all % rows || (turns && all / rows != turns)) {
            fail(fault, "internal", "", "%d samples can't be taken %d at a time", all, rows);
            return 0;
        }
        turns = all / rows;
    }
    return turns ? turns : 1;
}

static bool all_parts(Slot *slot, const Tensor *whole, Sink *sinks, size_t count, Fault *fault) {
    size_t inputs = slot->inputs.count;
    int32_t turns = turns_of(whole, slot->feed[0], inputs, fault);
    Tensor *part = must_have(inputs * sizeof *part);
    bool good = turns > 0;
    for (int32_t turn = 0; good && turn < turns; turn++) {
        for (size_t k = 0; k < inputs; k++)
            part[k] = part_of(&whole[k], &slot->feed[0][k], turn);
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
