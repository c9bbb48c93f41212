#include "verbs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "samples.h"
#include "slots.h"

#define WARM 2 /* calls that do not count */
#define MOST_RUNS 1000000
#define REGION "LiteRtRunCompiledModel: inputs set once, outputs not read"

const char *library = "libLiteRt.so";

static Settings settings = {1, true, false};
static bool opened;

static bool hello(const Json *request, Text *text, Fault *fault) {
    (void)request;
    bool there = litert_open(library, fault);
    text_add(text, "\"protocol\": 1, \"runner\": \"C, LiteRT " LITERT_VERSION "\", \"machine\": ");
    text_machine(text);
    text_add(text, ", \"snapshot\": ");
    text_snapshot(text);
    text_add(text, ", \"usable_cpus\": ");
    text_cpus(text);
    text_format(text, ", \"usable_cores\": %d, \"clock_step_ns\": %.17g, \"runtimes\": {\"litert\": {\"missing\": [", usable_cores(), clock_step_ns());
    if (!there)
        text_quote(text, fault->what);
    text_format(text, "], \"version\": %s}}", there ? "\"" LITERT_VERSION "\"" : "null");
    return true;
}

static bool read_options(const Json *options, Fault *fault) {
    settings.delegate = true;
    for (const Json *option = options ? options->first : NULL; option; option = option->next) {
        if (strcmp(option->key ? option->key : "", "delegate") != 0)
            return fail(fault, "user", "it has: delegate", "LiteRT has no option '%.60s'", option->key ? option->key : "?");
        const char *choice = option->kind == JSON_STRING ? option->text : "";
        settings.delegate = strcmp(choice, "xnnpack") == 0;
        if (!settings.delegate && strcmp(choice, "none") != 0)
            return fail(fault, "user", "one of xnnpack, none", "LiteRT: option delegate cannot be '%.60s'", choice);
    }
    return true;
}

static bool open_runtime(const Json *request, Text *text, Fault *fault) {
    const char *runtime;
    int64_t threads;
    slots_drop();
    opened = false;
    if (!json_text(request, "runtime", &runtime, fault) || !json_whole(request, "threads", &threads, fault))
        return false;
    if (strcmp(runtime, "litert") != 0)
        return fail(fault, "user", "it runs litert", "this runner has no runtime '%.60s'", runtime);
    if (!pin(json_member(request, "affinity"), fault))
        return false;
    int cores = usable_cores();
    if (threads < 1 || threads > cores)
        return fail(fault, "user", "more threads than cores wait for each other and the figures mean nothing", "threads=%lld is outside 1…%d, the cores that may be used here", (long long)threads, cores);
    if (!read_options(json_member(request, "options"), fault) || !litert_open(library, fault))
        return false;
    settings.threads = (int)threads;
    opened = true;
    text_add(text, "\"version\": \"" LITERT_VERSION "\", \"affinity\": ");
    text_cpus(text);
    return true;
}

static void facts(Text *text, const Slot *slot) {
    int64_t ops = session_graph_ops(slot->session);
    text_format(text, "{\"runtime\": \"litert\", \"version\": \"%s\", \"threads\": %d", LITERT_VERSION, settings.threads);
    text_format(text, ", \"provider\": \"%s\", \"hints\": {", settings.delegate ? "XNNPACK" : "builtin kernels");
    if (ops >= 0)
        text_format(text, "\"graph_ops\": \"%lld\", ", (long long)ops);
    text_format(text, "\"fully_delegated\": \"%s\"}", session_delegated(slot->session) ? "yes" : "no");
    text_add(text, ", \"timed_region\": \"" REGION "\", \"reduced_precision\": false}");
}

static bool load(const Json *request, Text *text, Fault *fault) {
    int64_t number;
    const char *file;
    if (!opened)
        return fail(fault, "user", "open it first", "no runtime is open");
    if (!json_whole(request, "slot", &number, fault) || !json_text(request, "file", &file, fault))
        return false;
    Slot *slot = slot_new(number);
    bool good = slot_describe(slot, request, fault);
    if (good) {
        Listener listener = listen_begin();
        int64_t resident = peak_begin();
        uint64_t start = now();
        slot->session = session_load(file, &slot->inputs, &slot->outputs, slot->feed[0], &settings, fault);
        uint64_t loaded = now();
        good = slot->session && slot_run(slot, 0, fault);
        uint64_t first = now();
        listen_end(listener, good ? NULL : fault);
        text_format(text, "\"load_ns\": %.17g, \"first_ns\": %.17g, ", (double)(loaded - start), (double)(first - loaded));
        text_peak(text, resident);
        text_add(text, ", \"facts\": ");
    }
    if (good)
        facts(text, slot);
    else
        slot_drop(number);
    return good;
}

static double real(const Tensor *tensor, size_t index, const double *scale, double zero_point) {
    double value = tensor_value(tensor, index);
    return scale ? (value - zero_point) * *scale : value;
}

/* The members that tell how far `got` is from `want`. */
static void compare(Text *text, const Tensor *got, const Tensor *want, const Json *expected) {
    const Json *scale = json_member(expected, "scale"), *zero = json_member(expected, "zero_point");
    const double *by = scale && scale->kind == JSON_NUMBER ? &scale->number : NULL;
    double offset = zero && zero->kind == JSON_NUMBER ? zero->number : 0, worst = 0, noise = 0, signal = 0;
    for (size_t k = 0; k < got->count; k++) {
        double reference = real(want, k, by, offset), error = real(got, k, by, offset) - reference;
        if (!isfinite(error)) {
            text_add(text, ", \"finite\": false");
            return;
        }
        worst = fmax(worst, fabs(error));
        noise += error * error;
        signal += reference * reference;
    }
    text_format(text, ", \"finite\": true, \"max_abs_error\": %.17g, \"noise\": %.17g, \"signal\": %.17g", worst, noise, signal);
}

/* An output by its name: the k-th port. */
static bool output_named(const Slot *slot, const char *name, Tensor *tensor, Fault *fault) {
    for (size_t k = 0; k < slot->outputs.count; k++)
        if (strcmp(slot->outputs.names[k], name) == 0)
            return session_output(slot->session, k, tensor, fault);
    return fail(fault, "internal", "", "the artifact has no output %.100s", name);
}

static bool check_one(const Slot *slot, const Json *expected, Text *text, Fault *fault) {
    const char *name;
    Tensor got, want;
    if (!json_text(expected, "name", &name, fault) || !output_named(slot, name, &got, fault))
        return false;
    if (!tensor_read(&want, expected, NULL, fault)) {
        tensor_free(&got);
        return false;
    }
    text_add(text, "{\"name\": ");
    text_quote(text, name);
    text_add(text, ", \"shape\": ");
    text_shape(text, &got);
    if (same_shape(&got, &want))
        compare(text, &got, &want, expected);
    text_add(text, "}");
    tensor_free(&got);
    tensor_free(&want);
    return true;
}

static bool check(const Json *request, Text *text, Fault *fault) {
    const Json *expect;
    Slot *slot = slot_of(request, fault);
    if (!slot || !json_need(request, "expect", JSON_ARRAY, &expect, fault) || !slot_run(slot, 0, fault))
        return false;
    text_add(text, "\"outputs\": [");
    for (const Json *entry = expect->first; entry; entry = entry->next) {
        if (!check_one(slot, entry, text, fault))
            return false;
        text_add(text, entry->next ? ", " : "");
    }
    text_add(text, "]");
    return true;
}

typedef struct {
    Slot *slot;
    int64_t block, warm;
    double ticks;
} Turn;

/* Always false, with the reason why a call failed. */
static bool why_not(Slot *slot, Fault *fault) {
    return session_invoked(slot->session, fault) ? fail(fault, "internal", "", "a call failed, and its repetition did not") : false;
}

/* Nothing but calls between the two looks at the clock. */
static bool take_turns(Turn *turns, size_t count, Fault *fault) {
    for (Turn *turn = turns; turn < turns + count; turn++) {
        bool good = true;
        for (int64_t call = 0; good && call < turn->warm; call++)
            good = slot_call(turn->slot);
        uint64_t start = now();
        for (int64_t call = 0; good && call < turn->block; call++)
            good = slot_call(turn->slot);
        turn->ticks = (double)(now() - start) / (double)turn->block;
        if (!good)
            return why_not(turn->slot, fault);
    }
    return true;
}

static bool time_calls(const Json *request, Text *text, Fault *fault) {
    const Json *order, *blocks, *warms;
    int64_t number;
    if (!json_need(request, "order", JSON_ARRAY, &order, fault) || !json_need(request, "blocks", JSON_ARRAY, &blocks, fault) ||
        !json_need(request, "warm", JSON_ARRAY, &warms, fault))
        return false;
    if (order->count != blocks->count || order->count != warms->count)
        return fail(fault, "internal", "", "\"order\", \"blocks\" and \"warm\" have different lengths");
    Turn *turns = must_have(order->count * sizeof *turns), *turn = turns;
    bool good = true;
    const Json *slot = order->first, *block = blocks->first, *warm = warms->first;
    for (; good && slot; slot = slot->next, block = block->next, warm = warm->next, turn++) {
        good = json_is_whole(slot, &number) && json_is_whole(block, &turn->block) && turn->block >= 1 &&
               json_is_whole(warm, &turn->warm) && turn->warm >= 0;
        if (!good)
            fail(fault, "internal", "", "\"order\", \"blocks\" or \"warm\" holds what is no slot or number of calls");
        else
            good = (turn->slot = slot_numbered(number, fault)) != NULL;
    }
    good = good && take_turns(turns, order->count, fault);
    text_add(text, "\"ns\": [");
    for (turn = turns; good && turn < turns + order->count; turn++)
        text_format(text, turn == turns ? "%.17g" : ", %.17g", turn->ticks);
    text_add(text, "]");
    free(turns);
    return good;
}

static int by_size(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static bool each(const Json *request, Text *text, Fault *fault) {
    int64_t repeats;
    Slot *slot = slot_of(request, fault);
    if (!slot || !json_whole(request, "repeats", &repeats, fault))
        return false;
    if (repeats < 1 || repeats > MOST_RUNS)
        return fail(fault, "internal", "", "\"repeats\" in the request is outside 1…%d", MOST_RUNS);
    double *ticks = must_have((size_t)repeats * sizeof *ticks);
    bool good = true;
    text_add(text, "\"ns\": [");
    for (size_t k = 0; good && k < slot->feeds; k++) {
        for (int64_t call = -WARM; good && call < repeats; call++) {
            uint64_t start = now();
            good = session_refill(slot->session, slot->feed[k]) && session_invoke(slot->session);
            if (call >= 0)
                ticks[call] = (double)(now() - start);
        }
        qsort(ticks, (size_t)repeats, sizeof *ticks, by_size);
        text_format(text, k ? ", %.17g" : "%.17g", (ticks[(repeats - 1) / 2] + ticks[repeats / 2]) / 2);
    }
    text_add(text, "]");
    free(ticks);
    return good || why_not(slot, fault);
}

static void text_op(Text *text, const Op *op, bool last) {
    text_add(text, "{\"name\": ");
    text_quote(text, op->name);
    text_add(text, ", \"kind\": ");
    text_quote(text, op->kind);
    text_format(text, ", \"ns\": %.17g, \"where\": \"%s\"}%s", op->ticks, op->where, last ? "" : ", ");
}

static bool ops(const Json *request, Text *text, Fault *fault) {
    int64_t runs;
    const char *file;
    Profile profile;
    Slot *slot = slot_of(request, fault);
    if (!slot || !json_whole(request, "runs", &runs, fault) || !json_text(request, "file", &file, fault))
        return false;
    if (runs < 1 || runs > MOST_RUNS)
        return fail(fault, "internal", "", "\"runs\" in the request is outside 1…%d", MOST_RUNS);
    Settings looking = settings;
    looking.profiling = true;
    Session *session = session_load(file, &slot->inputs, &slot->outputs, slot->feed[0], &looking, fault);
    bool good = session && session_feed(session, slot->feed[0], fault) && session_profile(session, runs, &profile, fault);
    session_free(session);
    if (!good)
        return false;
    text_add(text, "\"ops\": [");
    for (size_t k = 0; !profile.reason[0] && k < profile.count; k++)
        text_op(text, &profile.ops[k], k + 1 == profile.count);
    text_format(text, "], \"runs\": %lld, \"note\": \"LiteRT's own profiler, which takes time too\", \"reason\": ", (long long)runs);
    text_quote(text, profile.reason);
    profile_free(&profile);
    return true;
}

static bool run(const Json *request, Text *text, Fault *fault) {
    Slot *slot = slot_of(request, fault);
    return slot && run_samples(slot, request, text, fault);
}

static bool snapshot(const Json *request, Text *text, Fault *fault) {
    (void)request, (void)fault;
    text_add(text, "\"snapshot\": ");
    text_snapshot(text);
    return true;
}

static bool drop(const Json *request, Text *text, Fault *fault) {
    (void)request, (void)text, (void)fault;
    slots_drop();
    return true;
}

bool answer(const Json *request, Text *text, Fault *fault) {
    static const struct {
        const char *verb;
        bool (*answer)(const Json *, Text *, Fault *);
    } verbs[] = {
        {"hello", hello}, {"open", open_runtime}, {"load", load}, {"check", check}, {"time", time_calls},
        {"each", each},   {"ops", ops},           {"run", run},   {"drop", drop},   {"snapshot", snapshot},
    };
    const Json *verb = json_member(request, "do");
    for (size_t k = 0; verb && verb->kind == JSON_STRING && k < sizeof verbs / sizeof verbs[0]; k++)
        if (strcmp(verbs[k].verb, verb->text) == 0)
            return verbs[k].answer(request, text, fault);
    return fail(fault, "user", "it is older than the trimtab that asks; put it there anew", "this runner does not know '%.60s'", verb && verb->kind == JSON_STRING ? verb->text : "?");
}
