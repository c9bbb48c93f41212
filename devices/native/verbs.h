/* The requests of docs/device-protocol.md, each answered with the members of one JSON object. */
#ifndef TRIMTAB_VERBS_H
#define TRIMTAB_VERBS_H

#include "json.h"

/* Where libLiteRt.so lies. */
extern const char *library;

/* The answer to a request appended to `text`; false and a fault when it failed, and then `text` is of no use. */
bool answer(const Json *request, Text *text, Fault *fault);

#endif
