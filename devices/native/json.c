#include "json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEEPEST 64

typedef struct {
    const char *at, *end;
    int depth;
    const char *why;
} Reader;

bool fail(Fault *fault, const char *kind, const char *hint, const char *format, ...) {
    va_list values;
    fault->kind = kind;
    snprintf(fault->hint, sizeof fault->hint, "%s", hint);
    va_start(values, format);
    vsnprintf(fault->what, sizeof fault->what, format, values);
    va_end(values);
    return false;
}

void *must_have(size_t size) {
    void *memory = calloc(1, size ? size : 1);
    if (!memory) {
        fprintf(stderr, "out of memory (%zu bytes asked)\n", size);
        exit(4);
    }
    return memory;
}

char *must_copy(const char *string) {
    size_t size = strlen(string) + 1;
    return memcpy(must_have(size), string, size);
}

static void skip_space(Reader *reader) {
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) && *reader->at)
        reader->at++;
}

static bool wrong(Reader *reader, const char *why) {
    if (!reader->why)
        reader->why = why;
    return false;
}

static bool take(Reader *reader, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        return false;
    reader->at += length;
    return true;
}

static bool hex4(Reader *reader, unsigned *code) {
    *code = 0;
    if (reader->end - reader->at < 4)
        return wrong(reader, "a short \\u escape");
    for (int k = 0; k < 4; k++) {
        char c = *reader->at++;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return wrong(reader, "a \\u escape that is not hexadecimal");
        *code = *code * 16 + (unsigned)digit;
    }
    return true;
}

/* At most four bytes: never more than the escape that they replace. */
static char *put_utf8(char *to, unsigned code) {
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xC0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *to++ = (char)(0xE0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    } else {
        *to++ = (char)(0xF0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3F));
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    }
    return to;
}

static bool read_escape(Reader *reader, char **to) {
    static const char marks[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    unsigned code, low;
    const char *found;
    if (reader->at >= reader->end)
        return wrong(reader, "a string without an end");
    if (*reader->at != 'u') {
        found = *reader->at ? strchr(marks, *reader->at) : NULL;
        if (!found)
            return wrong(reader, "an unknown escape");
        reader->at++;
        *(*to)++ = meant[found - marks];
        return true;
    }
    reader->at++;
    if (!hex4(reader, &code))
        return false;
    if (code >= 0xD800 && code < 0xDC00) {
        if (!take(reader, "\\u") || !hex4(reader, &low) || low < 0xDC00 || low > 0xDFFF)
            return wrong(reader, "half a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if ((code >= 0xDC00 && code < 0xE000) || code == 0) {
        return wrong(reader, "an escape that stands for no character");
    }
    *to = put_utf8(*to, code);
    return true;
}

static char *read_string(Reader *reader) {
    char *start, *to;
    if (!take(reader, "\"")) {
        wrong(reader, "no string where one must be");
        return NULL;
    }
    start = to = must_have((size_t)(reader->end - reader->at) + 1);
    while (reader->at < reader->end) {
        unsigned char c = (unsigned char)*reader->at++;
        if (c == '"') {
            *to++ = '\0';
            char *fitted = realloc(start, (size_t)(to - start));
            return fitted ? fitted : start;
        }
        if (c == '\\') {
            if (!read_escape(reader, &to))
                break;
        } else if (c < 0x20) {
            wrong(reader, "a control character in a string");
            break;
        } else {
            *to++ = (char)c;
        }
    }
    wrong(reader, "a string without an end");
    free(start);
    return NULL;
}

static bool read_number(Reader *reader, double *number) {
    char digits[64], *stop;
    size_t length = 0;
    while (reader->at + length < reader->end && length < sizeof digits - 1 && reader->at[length] && strchr("+-.eE0123456789", reader->at[length]))
        length++;
    memcpy(digits, reader->at, length);
    digits[length] = '\0';
    *number = strtod(digits, &stop);
    if (!length || *stop || !isfinite(*number) || digits[0] == '+' || digits[0] == '.')
        return wrong(reader, "no value where one must be");
    reader->at += length;
    return true;
}

static bool read_value(Reader *reader, Json *value);

/* The children of an array or an object, whose opening bracket is behind. */
static bool read_children(Reader *reader, Json *value, const char *close) {
    Json **last = &value->first;
    skip_space(reader);
    if (take(reader, close))
        return true;
    do {
        Json *child = *last = must_have(sizeof *child);
        last = &child->next;
        value->count++;
        skip_space(reader);
        if (value->kind == JSON_OBJECT) {
            if (!(child->key = read_string(reader)))
                return false;
            skip_space(reader);
            if (!take(reader, ":"))
                return wrong(reader, "a key without a colon");
        }
        if (!read_value(reader, child))
            return false;
        skip_space(reader);
    } while (take(reader, ","));
    return take(reader, close) || wrong(reader, "a bracket that is not closed");
}

static bool read_value(Reader *reader, Json *value) {
    bool good;
    skip_space(reader);
    if (take(reader, "null"))
        return true;
    if (take(reader, "true") || take(reader, "false")) {
        value->kind = JSON_BOOL;
        value->truth = reader->at[-2] == 'u';
        return true;
    }
    if (reader->at < reader->end && *reader->at == '"') {
        value->kind = JSON_STRING;
        return (value->text = read_string(reader)) != NULL;
    }
    if (reader->at < reader->end && (*reader->at == '[' || *reader->at == '{')) {
        value->kind = *reader->at++ == '[' ? JSON_ARRAY : JSON_OBJECT;
        if (++reader->depth > DEEPEST)
            return wrong(reader, "brackets too deep");
        good = read_children(reader, value, value->kind == JSON_ARRAY ? "]" : "}");
        reader->depth--;
        return good;
    }
    value->kind = JSON_NUMBER;
    return read_number(reader, &value->number);
}

Json *json_read(const char *text, size_t length, Fault *fault) {
    Reader reader = {.at = text, .end = text + length};
    Json *value = must_have(sizeof *value);
    if (read_value(&reader, value)) {
        skip_space(&reader);
        if (reader.at == reader.end)
            return value;
        wrong(&reader, "more than one value");
    }
    json_free(value);
    fail(fault, "internal", "", "the request is no JSON: %s", reader.why);
    return NULL;
}

void json_free(Json *value) {
    while (value) { /* as deep as DEEPEST at most */
        Json *next = value->next;
        json_free(value->first);
        free(value->text);
        free(value->key);
        free(value);
        value = next;
    }
}

const Json *json_member(const Json *object, const char *key) {
    if (!object || object->kind != JSON_OBJECT)
        return NULL;
    for (const Json *child = object->first; child; child = child->next)
        if (strcmp(child->key, key) == 0)
            return child;
    return NULL;
}

bool json_need(const Json *object, const char *key, JsonKind kind, const Json **found, Fault *fault) {
    static const char *const names[] = {"null", "true or false", "a number", "a text", "a list", "an object"};
    *found = json_member(object, key);
    if (!*found)
        return fail(fault, "internal", "", "the request lacks \"%.40s\"", key);
    return (*found)->kind == kind || fail(fault, "internal", "", "\"%.40s\" in the request is not %s", key, names[kind]);
}

bool json_text(const Json *object, const char *key, const char **found, Fault *fault) {
    const Json *value;
    if (!json_need(object, key, JSON_STRING, &value, fault))
        return false;
    *found = value->text;
    return true;
}

bool json_is_whole(const Json *value, int64_t *found) {
    if (!value || value->kind != JSON_NUMBER || value->number != floor(value->number) || fabs(value->number) > 9e15)
        return false;
    *found = (int64_t)value->number;
    return true;
}

bool json_whole(const Json *object, const char *key, int64_t *found, Fault *fault) {
    const Json *value;
    if (!json_need(object, key, JSON_NUMBER, &value, fault))
        return false;
    return json_is_whole(value, found) || fail(fault, "internal", "", "\"%.40s\" in the request is no whole number", key);
}

static void text_room(Text *text, size_t more) {
    if (text->length + more + 1 <= text->room)
        return;
    size_t room = (text->length + more + 1) * 2;
    char *bytes = realloc(text->bytes, room);
    if (!bytes) {
        fprintf(stderr, "out of memory (%zu bytes asked)\n", room);
        exit(4);
    }
    text->bytes = bytes;
    text->room = room;
}

void text_add(Text *text, const char *bytes) {
    size_t length = strlen(bytes);
    text_room(text, length);
    memcpy(text->bytes + text->length, bytes, length + 1);
    text->length += length;
}

void text_format(Text *text, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int length = vsnprintf(NULL, 0, format, values);
    va_end(values);
    text_room(text, (size_t)length);
    va_start(values, format);
    vsnprintf(text->bytes + text->length, (size_t)length + 1, format, values);
    va_end(values);
    text->length += (size_t)length;
}

/* How many bytes the UTF-8 character at `at` has; 0 when it is none. The text ends with a zero byte. */
static size_t utf8_length(const unsigned char *at) {
    size_t length = at[0] < 0x80 ? 1 : at[0] >= 0xC2 && at[0] < 0xE0 ? 2 : (at[0] & 0xF0) == 0xE0 ? 3 : at[0] >= 0xF0 && at[0] < 0xF5 ? 4 : 0;
    for (size_t k = 1; k < length; k++)
        if ((at[k] & 0xC0) != 0x80)
            return 0;
    if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] >= 0xA0) || (at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] >= 0x90))
        return 0;
    return length;
}

void text_quote(Text *text, const char *string) {
    text_add(text, "\"");
    for (const unsigned char *at = (const unsigned char *)string; *at;) {
        size_t length = utf8_length(at);
        if (*at == '"' || *at == '\\')
            text_format(text, "\\%c", *at++);
        else if (*at < 0x20)
            text_format(text, "\\u%04x", *at++);
        else if (!length)
            text_add(text, (at++, "?"));
        else
            text_format(text, "%.*s", (int)length, (const char *)at), at += length;
    }
    text_add(text, "\"");
}

void text_number(Text *text, double number) {
    if (isfinite(number))
        text_format(text, "%.17g", number);
    else
        text_add(text, "null");
}

void text_clear(Text *text) {
    text->length = 0;
    if (text->bytes)
        text->bytes[0] = '\0';
}

void text_free(Text *text) {
    free(text->bytes);
    *text = (Text){0};
}
