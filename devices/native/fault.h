/* Why a request failed, in the words of docs/device-protocol.md. */
#ifndef TRIMTAB_FAULT_H
#define TRIMTAB_FAULT_H

#include <stdbool.h>

typedef struct {
    const char *kind; /* "rejected", "user" or "internal" */
    char what[1024];
    char hint[256];
} Fault;

/* Always false, so that a function may end with `return fail(…)`. `hint` may be empty. */
bool fail(Fault *fault, const char *kind, const char *hint, const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
