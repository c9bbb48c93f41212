/* JSON, as much as one line of the protocol needs: a reader into a tree, a writer into a growing text. */
#ifndef TRIMTAB_JSON_H
#define TRIMTAB_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault.h"

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;

/* A value. Arrays and objects hold a list of `count` children, which in objects have a `key`. */
typedef struct Json {
    JsonKind kind;
    bool truth;
    double number;
    char *text;
    char *key;
    size_t count;
    struct Json *first, *next;
} Json;

/* The value that `text` holds, nothing but white space around it. NULL and a fault of kind "internal" when it is no JSON. */
Json *json_read(const char *text, size_t length, Fault *fault);
void json_free(Json *value);

/* The member of an object, NULL when it has none or `object` is no object. */
const Json *json_member(const Json *object, const char *key);

/* A member that must be there, of one kind; false with a fault of kind "internal" otherwise. */
bool json_need(const Json *object, const char *key, JsonKind kind, const Json **found, Fault *fault);
bool json_text(const Json *object, const char *key, const char **found, Fault *fault);
bool json_whole(const Json *object, const char *key, int64_t *found, Fault *fault);

/* A whole number that `value` is; false when it is anything else. */
bool json_is_whole(const Json *value, int64_t *found);

typedef struct {
    char *bytes;
    size_t length, room;
} Text;

void text_add(Text *text, const char *bytes);
void text_format(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* In quotes, escaped; bytes that are no UTF-8 become question marks. */
void text_quote(Text *text, const char *string);
void text_number(Text *text, double number);
void text_clear(Text *text);
void text_free(Text *text);

/* Memory, or the end of the program with a word on standard error. */
void *must_have(size_t size);
char *must_copy(const char *string);

#endif
