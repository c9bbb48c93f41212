/* Loaded artifacts, by the number that the asking side gave them. */
#ifndef TRIMTAB_SLOTS_H
#define TRIMTAB_SLOTS_H

#include "litert.h"

typedef struct Slot {
    int64_t number;
    Session *session;
    Ports inputs, outputs;
    size_t feeds;
    Tensor **feed; /* feed, then input port */
    size_t gaps;
    void **gap; /* memory that keeps the session away from where the last one lay */
    struct Slot *next;
} Slot;

/* A new, empty slot in place of the one that had the number. */
Slot *slot_new(int64_t number);
/* The slot that a request names; NULL and a fault when it is empty. */
Slot *slot_of(const Json *request, Fault *fault);
Slot *slot_numbered(int64_t number, Fault *fault);
void slot_drop(int64_t number);
void slots_drop(void);

/* What a `load` request says of the slot's ports, feeds and gaps. */
bool slot_describe(Slot *slot, const Json *request, Fault *fault);
/* One tensor per input port, from an object of name → file, shape, dtype. NULL and a fault otherwise. */
Tensor *feed_read(const Ports *ports, const Json *told, Fault *fault);
void feed_free(Tensor *feed, const Ports *ports);

/* What is timed: an inference on what is bound, or on all feeds in turn. */
bool slot_call(Slot *slot);
/* One inference on the k-th feed. */
bool slot_run(Slot *slot, size_t k, Fault *fault);

#endif
