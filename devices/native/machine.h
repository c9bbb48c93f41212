/* What this machine tells about itself, read where devices/conditions.py reads it. */
#ifndef TRIMTAB_MACHINE_H
#define TRIMTAB_MACHINE_H

#include <stdint.h>

#include "json.h"

/* Instructions in a runner that counts them, nanoseconds otherwise. */
uint64_t now(void);
extern const double TICKS_PER_US; /* what the profiler's microsecond is in units of `now` */

void text_machine(Text *text);  /* the object of `machine` */
void text_snapshot(Text *text); /* the object of `snapshot` */
void text_cpus(Text *text);     /* the CPUs that this process may use, or null */
int usable_cores(void);
double clock_step_ns(void);

/* This process on the CPUs of a list alone; null and an absent list change nothing. */
bool pin(const Json *cpus, Fault *fault);

/* Resets the peak of resident memory; the resident bytes now, negative where the kernel has no such thing. */
int64_t peak_begin(void);
void text_peak(Text *text, int64_t begin);

#endif
