/* The runner where there is no Python: it answers the requests of docs/device-protocol.md for LiteRT.
 *
 *     runner libLiteRt.so
 *
 * It decides nothing: orders, block sizes, when to stop and what is good enough are the asking side's. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"
#include "slots.h"
#include "verbs.h"

#define LONGEST ((ssize_t)64 << 20)

static void respond(FILE *answers, const char *line, size_t length, Text *text) {
    Fault fault = {.kind = "internal"};
    Json *request = json_read(line, length, &fault);
    text_clear(text);
    text_add(text, "@trimtab {");
    if (!request || !answer(request, text, &fault)) {
        text_clear(text);
        text_format(text, "@trimtab {\"error\": {\"kind\": \"%s\", \"what\": ", fault.kind);
        text_quote(text, fault.what);
        text_add(text, ", \"hint\": ");
        text_quote(text, fault.hint);
        text_add(text, "}");
    }
    text_add(text, "}\n");
    fwrite(text->bytes, 1, text->length, answers);
    fflush(answers);
    json_free(request);
}

int main(int count, char **words) {
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    Text text = {0};
    int kept = dup(1);
    FILE *answers = kept >= 0 ? fdopen(kept, "w") : NULL;
    if (count != 2 || !answers || dup2(2, 1) < 0) {
        fprintf(stderr, "usage: %s libLiteRt.so (it answers requests on its standard input)\n", words[0]);
        return 2;
    }
    library = words[1];
    now(); /* where instructions are to be counted and can't be, it ends here */
    while ((length = getline(&line, &room, stdin)) > 0 && length < LONGEST)
        respond(answers, line, (size_t)length, &text);
    slots_drop();
    text_free(&text);
    free(line);
    return fclose(answers) == 0 && length <= 0 ? 0 : 3;
}
