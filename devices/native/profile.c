#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert_api.h"
#include "machine.h"

#define MOST_EVENTS 100000
#define PAINT 0xA5
#define DEEPEST 16 /* branches inside each other */

/* One event of LiteRT's profiler: 104 bytes in 2.3. */
typedef struct {
    const char *tag;
    int type;
    uint64_t start_us, elapsed_us;
    uint64_t memory[6];
    uint64_t index, subgraph;
    int source;
} Event;
_Static_assert(sizeof(Event) == 104, "LiteRT's layout of a profiled event");
enum { RUNTIME = 1, OPERATION = 2, DELEGATED = 8 };

/* The events of one run, in a list that the caller frees. NULL, with `why` set, when there are none or they look unlike events. */
static Event *events_of(Handle profiler, int *count, const char **why) {
    *why = "LiteRT's profiler tells nothing";
    if (lrt.GetNumProfilerEvents(profiler, count) != 0 || *count < 1 || *count > MOST_EVENTS)
        return NULL;
    size_t room = ((size_t)*count + 1) * 2 * sizeof(Event); /* so that larger ones do no harm before they are noticed */
    unsigned char *bytes = must_have(room);
    memset(bytes, PAINT, room);
    size_t used = room;
    if (lrt.GetProfilerEvents(profiler, *count, bytes) == 0) {
        while (used && bytes[used - 1] == PAINT)
            used--;
        Event *events = (Event *)(void *)bytes;
        bool good = used <= (size_t)*count * sizeof(Event) && used + 8 > (size_t)*count * sizeof(Event);
        for (int k = 0; good && k < *count; k++)
            good = events[k].tag && events[k].type > 0 && events[k].type <= 256 && (events[k].type & (events[k].type - 1)) == 0;
        if (good) {
            *why = NULL;
            return events;
        }
        *why = "LiteRT's profiler tells it in a form that this runner does not know";
    }
    free(bytes);
    return NULL;
}

/* A name as the Python runner gives: a delegate counts its operations anew in every partition, so one may come again. */
static char *name_of(const Event *events, int index) {
    char name[128];
    const Event *event = &events[index];
    int again = 1;
    for (int k = 0; k < index; k++)
        if (events[k].type == event->type && events[k].index == event->index && events[k].subgraph == event->subgraph && strcmp(events[k].tag, event->tag) == 0)
            again++;
    int length = snprintf(name, sizeof name, "op %llu", (unsigned long long)event->index);
    if (event->subgraph)
        length += snprintf(name + length, sizeof name - (size_t)length, " of subgraph %llu", (unsigned long long)event->subgraph);
    if (again > 1)
        snprintf(name + length, sizeof name - (size_t)length, " #%d", again);
    return must_copy(name);
}

static Op *op_new(Profile *profile, const Event *events, int index) {
    Op *more = realloc(profile->ops, (profile->count + 1) * sizeof *more);
    if (!more)
        return NULL;
    profile->ops = more;
    more += profile->count++;
    *more = (Op){name_of(events, index), must_copy(events[index].tag), events[index].type == DELEGATED ? "XNNPACK" : "LiteRT kernel", 0};
    return more;
}

static bool holds_others(const Event *event) {
    return event->type == OPERATION && (strcmp(event->tag, "IF") == 0 || strcmp(event->tag, "WHILE") == 0 || strcmp(event->tag, "CALL_ONCE") == 0);
}

/* The operations among the events of one run, added to those of the runs before; what runs in a branch is taken off the operation
 * that holds it. False when they are not the same operations. */
static bool add_run(Profile *profile, const Event *events, int count, bool first) {
    struct {
        uint64_t end_us;
        size_t op;
    } hosts[DEEPEST];
    size_t k = 0, depth = 0;
    for (int index = 0; index < count; index++) {
        const Event *event = &events[index];
        if (event->type == RUNTIME || event->type == OPERATION) /* a delegate's events have no start */
            while (depth && hosts[depth - 1].end_us <= event->start_us)
                depth--;
        if (event->type == RUNTIME && depth && event->subgraph && strcmp(event->tag, "Invoke") == 0)
            profile->ops[hosts[depth - 1].op].ticks -= (double)event->elapsed_us * TICKS_PER_US;
        if (event->type != DELEGATED && event->type != OPERATION)
            continue;
        Op *op = first ? op_new(profile, events, index) : k < profile->count ? &profile->ops[k] : NULL;
        if (!op || strcmp(op->kind, event->tag) != 0 || (holds_others(event) && depth == DEEPEST))
            return false;
        op->ticks += (double)event->elapsed_us * TICKS_PER_US;
        if (holds_others(event)) {
            hosts[depth].end_us = event->start_us + event->elapsed_us;
            hosts[depth++].op = k;
        }
        k++;
    }
    return k == profile->count;
}

bool session_profile(Session *session, int64_t runs, Profile *profile, Fault *fault) {
    Handle profiler;
    const char *why = NULL;
    *profile = (Profile){0};
    Status status = lrt.CompiledModelGetProfiler(session->compiled, &profiler);
    if (status != 0)
        return reject(session, fault, status, "it has no profiler");
    for (int warm = 0; warm < 2; warm++)
        if (!session_invoked(session, fault))
            return false;
    for (int64_t run = 0; run < runs && !why; run++) {
        int count;
        if (lrt.ResetProfiler(profiler) != 0 || lrt.StartProfiler(profiler) != 0) {
            why = "LiteRT's profiler does not start";
            break;
        }
        bool good = session_invoked(session, fault);
        lrt.StopProfiler(profiler);
        if (!good) {
            profile_free(profile);
            return false;
        }
        Event *events = events_of(profiler, &count, &why);
        if (events && !add_run(profile, events, count, run == 0))
            why = "LiteRT's profiler does not name the same operations in every run";
        free(events);
    }
    if (!why && !profile->count)
        why = "LiteRT's profiler names no operation";
    if (why)
        snprintf(profile->reason, sizeof profile->reason, "%s", why);
    for (size_t k = 0; k < profile->count; k++)
        profile->ops[k].ticks = profile->ops[k].ticks > 0 ? profile->ops[k].ticks / (double)runs : 0;
    return true;
}

void profile_free(Profile *profile) {
    for (size_t k = 0; k < profile->count; k++) {
        free(profile->ops[k].name);
        free(profile->ops[k].kind);
    }
    free(profile->ops);
    *profile = (Profile){0};
}
