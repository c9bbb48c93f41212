#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert_api.h"
#include "machine.h"

#define MOST_EVENTS 100000
#define PAINT 0xA5

/* One event of LiteRT's profiler: 104 bytes in 2.3. */
typedef struct {
    const char *tag;
    int type;
    uint64_t start_us, elapsed_us;
    uint64_t memory[6];
    uint64_t index, more;
    int source;
} Event;
_Static_assert(sizeof(Event) == 104, "LiteRT's layout of a profiled event");
enum { OPERATION = 2, DELEGATED = 8 };

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

static Op *op_at(Profile *profile, const Event *event) {
    Op *more = realloc(profile->ops, (profile->count + 1) * sizeof *more);
    if (!more)
        return NULL;
    profile->ops = more;
    more += profile->count++;
    *more = (Op){must_copy(event->tag), event->type == DELEGATED ? "XNNPACK" : "CPU", 0};
    return more;
}

/* The operations among the events of one run, added to those of the runs before. False when they are not the same ones. */
static bool add_run(Profile *profile, const Event *events, int count, bool first) {
    size_t k = 0;
    for (int index = 0; index < count; index++) {
        const Event *event = &events[index];
        bool node = event->type == OPERATION && strncmp(event->tag, "TfLiteXNNPackDelegate", 21) != 0; /* which encloses its own */
        if (event->type != DELEGATED && !node)
            continue;
        Op *op = first ? op_at(profile, event) : k < profile->count ? &profile->ops[k] : NULL;
        if (!op || strcmp(op->name, event->tag) != 0)
            return false;
        op->ticks += (double)event->elapsed_us * TICKS_PER_US;
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
        profile->ops[k].ticks /= (double)runs;
    return true;
}

void profile_free(Profile *profile) {
    for (size_t k = 0; k < profile->count; k++)
        free(profile->ops[k].name);
    free(profile->ops);
    *profile = (Profile){0};
}
