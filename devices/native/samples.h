/* The `run` request: the outputs on any number of samples, from files into files. */
#ifndef TRIMTAB_SAMPLES_H
#define TRIMTAB_SAMPLES_H

#include "slots.h"

bool run_samples(Slot *slot, const Json *request, Text *text, Fault *fault);

#endif
