#include "slots.h"

#include <stdlib.h>
#include <string.h>

static Slot *slots;

static void slot_free(Slot *slot) {
    session_free(slot->session);
    for (size_t k = 0; k < slot->feeds; k++)
        feed_free(slot->feed[k], &slot->inputs);
    free(slot->feed);
    for (size_t k = 0; k < slot->gaps; k++)
        free(slot->gap[k]);
    free(slot->gap);
    Ports *both[] = {&slot->inputs, &slot->outputs};
    for (int side = 0; side < 2; side++) {
        for (size_t k = 0; k < both[side]->count; k++)
            free((char *)both[side]->names[k]);
        free(both[side]->names);
        free(both[side]->dtypes);
    }
    free(slot);
}

void slot_drop(int64_t number) {
    for (Slot **link = &slots; *link; link = &(*link)->next)
        if ((*link)->number == number) {
            Slot *gone = *link;
            *link = gone->next;
            slot_free(gone);
            return;
        }
}

void slots_drop(void) {
    while (slots)
        slot_drop(slots->number);
}

Slot *slot_new(int64_t number) {
    slot_drop(number);
    Slot *slot = must_have(sizeof *slot);
    slot->number = number;
    slot->next = slots;
    return slots = slot;
}

Slot *slot_numbered(int64_t number, Fault *fault) {
    for (Slot *slot = slots; slot; slot = slot->next)
        if (slot->number == number)
            return slot;
    fail(fault, "user", "load an artifact into it first", "slot %lld is empty", (long long)number);
    return NULL;
}

Slot *slot_of(const Json *request, Fault *fault) {
    int64_t number;
    return json_whole(request, "slot", &number, fault) ? slot_numbered(number, fault) : NULL;
}

static bool read_ports(Ports *ports, const Json *request, const char *key, Fault *fault) {
    const Json *list;
    const char *name, *dtype;
    if (!json_need(request, key, JSON_ARRAY, &list, fault))
        return false;
    ports->names = must_have(list->count * sizeof *ports->names);
    ports->dtypes = must_have(list->count * sizeof *ports->dtypes);
    for (const Json *port = list->first; port; port = port->next) {
        if (!json_text(port, "name", &name, fault) || !json_text(port, "dtype", &dtype, fault))
            return false;
        if (!(ports->dtypes[ports->count] = dtype_named(dtype)))
            return fail(fault, "rejected", "", "LiteRT has no tensors of type %.40s", dtype);
        ports->names[ports->count++] = must_copy(name);
    }
    return ports->count > 0 || fail(fault, "internal", "", "the request names no %s", key);
}

Tensor *feed_read(const Ports *ports, const Json *told, Fault *fault) {
    const Json *entry;
    Tensor *feed = must_have(ports->count * sizeof *feed);
    for (size_t k = 0; k < ports->count; k++)
        if (!json_need(told, ports->names[k], JSON_OBJECT, &entry, fault) || !tensor_read(&feed[k], entry, ports->dtypes[k], fault)) {
            feed_free(feed, ports);
            return NULL;
        }
    return feed;
}

void feed_free(Tensor *feed, const Ports *ports) {
    for (size_t k = 0; feed && k < ports->count; k++)
        tensor_free(&feed[k]);
    free(feed);
}

static bool read_gaps(Slot *slot, const Json *gaps, Fault *fault) {
    int64_t size;
    slot->gap = must_have((gaps ? gaps->count : 0) * sizeof *slot->gap);
    for (const Json *entry = gaps ? gaps->first : NULL; entry; entry = entry->next) {
        if (!json_is_whole(entry, &size) || size < 0)
            return fail(fault, "internal", "", "\"gaps\" in the request holds what is no size");
        if (!(slot->gap[slot->gaps++] = calloc(1, (size_t)size + 1)))
            return fail(fault, "internal", "", "no memory for a gap of %lld bytes", (long long)size);
    }
    return true;
}

bool slot_describe(Slot *slot, const Json *request, Fault *fault) {
    const Json *feeds;
    if (!read_ports(&slot->inputs, request, "inputs", fault) || !read_ports(&slot->outputs, request, "outputs", fault))
        return false;
    if (!json_need(request, "feeds", JSON_ARRAY, &feeds, fault) || !read_gaps(slot, json_member(request, "gaps"), fault))
        return false;
    slot->feed = must_have(feeds->count * sizeof *slot->feed);
    for (const Json *told = feeds->first; told; told = told->next) {
        if (!(slot->feed[slot->feeds] = feed_read(&slot->inputs, told, fault)))
            return false;
        slot->feeds++;
        for (size_t k = 0; k < slot->inputs.count; k++)
            if (!same_shape(&slot->feed[slot->feeds - 1][k], &slot->feed[0][k]))
                return fail(fault, "rejected", "", "inputs that are run in turn must all have one shape");
    }
    return slot->feeds > 0 || fail(fault, "internal", "", "the request has no feed");
}

bool slot_call(Slot *slot) {
    if (slot->feeds == 1)
        return session_invoke(slot->session);
    for (size_t k = 0; k < slot->feeds; k++)
        if (!session_refill(slot->session, slot->feed[k]) || !session_invoke(slot->session))
            return false;
    return true;
}

bool slot_run(Slot *slot, size_t k, Fault *fault) {
    return session_feed(slot->session, slot->feed[k], fault) && session_invoked(slot->session, fault);
}
