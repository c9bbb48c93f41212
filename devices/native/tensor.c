#include "tensor.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Dtype dtypes[] = {
    {"float32", 4, 1}, {"int32", 4, 2},   {"uint8", 1, 3},   {"int64", 8, 4},    {"bool", 1, 6},    {"int16", 2, 7},
    {"int8", 1, 9},    {"float16", 2, 10}, {"float64", 8, 11}, {"uint64", 8, 13}, {"uint32", 4, 16}, {"uint16", 2, 17},
};
#define DTYPES (sizeof dtypes / sizeof dtypes[0])

const Dtype *dtype_named(const char *name) {
    for (size_t k = 0; k < DTYPES; k++)
        if (strcmp(dtypes[k].name, name) == 0)
            return &dtypes[k];
    return NULL;
}

const Dtype *dtype_of(int element) {
    for (size_t k = 0; k < DTYPES; k++)
        if (dtypes[k].element == element)
            return &dtypes[k];
    return NULL;
}

bool tensor_size(Tensor *tensor, Fault *fault) {
    tensor->count = 1;
    for (int k = 0; k < tensor->rank; k++)
        if (tensor->shape[k] < 0 || __builtin_mul_overflow(tensor->count, (size_t)tensor->shape[k], &tensor->count))
            return fail(fault, "internal", "", "a shape with the size %d", tensor->shape[k]);
    if (__builtin_mul_overflow(tensor->count, tensor->dtype->size, &tensor->bytes) || tensor->bytes > (size_t)1 << 40)
        return fail(fault, "internal", "", "a shape with more than a terabyte");
    return true;
}

bool tensor_shape(Tensor *tensor, const Json *shape, Fault *fault) {
    int64_t size;
    if (shape->count > MOST_DIMENSIONS)
        return fail(fault, "internal", "", "a shape with more than %d dimensions", MOST_DIMENSIONS);
    tensor->rank = 0;
    for (const Json *entry = shape->first; entry; entry = entry->next) {
        if (!json_is_whole(entry, &size) || size < 0 || size > INT32_MAX)
            return fail(fault, "internal", "", "a shape holds what is no size");
        tensor->shape[tensor->rank++] = (int32_t)size;
    }
    return tensor_size(tensor, fault);
}

bool tensor_read(Tensor *tensor, const Json *told, const Dtype *dtype, Fault *fault) {
    const char *path, *name;
    const Json *shape;
    *tensor = (Tensor){.dtype = dtype};
    if (!json_text(told, "file", &path, fault) || !json_need(told, "shape", JSON_ARRAY, &shape, fault))
        return false;
    if (!dtype) {
        if (!json_text(told, "dtype", &name, fault))
            return false;
        if (!(tensor->dtype = dtype_named(name)))
            return fail(fault, "rejected", "", "LiteRT has no tensors of type %.40s", name);
    }
    if (!tensor_shape(tensor, shape, fault))
        return false;
    FILE *file = fopen(path, "rb");
    if (!file)
        return fail(fault, "user", "was it put there?", "%.300s can't be read: %s", path, strerror(errno));
    long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    rewind(file);
    bool good = size >= 0 && (size_t)size == tensor->bytes;
    if (good) {
        tensor->data = must_have(tensor->bytes);
        good = fread(tensor->data, 1, tensor->bytes, file) == tensor->bytes;
    }
    fclose(file);
    if (good)
        return true;
    tensor_free(tensor);
    return fail(fault, "internal", "", "%.300s has %ld bytes, its shape asks for %zu", path, size, tensor->bytes);
}

bool tensor_write(const Tensor *tensor, const char *path, Fault *fault) {
    FILE *file = fopen(path, "wb");
    if (!file)
        return fail(fault, "user", "", "%.300s can't be written: %s", path, strerror(errno));
    bool good = fwrite(tensor->data, 1, tensor->bytes, file) == tensor->bytes;
    if (fclose(file) != 0 || !good)
        return fail(fault, "user", "is the disk full?", "%.300s can't be written: %s", path, strerror(errno));
    return true;
}

void tensor_free(Tensor *tensor) {
    free(tensor->data);
    tensor->data = NULL;
}

bool same_shape(const Tensor *left, const Tensor *right) {
    return left->rank == right->rank && memcmp(left->shape, right->shape, sizeof left->shape[0] * (size_t)left->rank) == 0;
}

static double half(uint16_t bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double size = exponent == 0 ? ldexp(mantissa, -24) : exponent < 31 ? ldexp(mantissa + 1024, exponent - 25) : mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}

double tensor_value(const Tensor *tensor, size_t index) {
    const unsigned char *at = tensor->data + index * tensor->dtype->size;
    union {
        float f32;
        double f64;
        int8_t i8;
        int16_t i16;
        int32_t i32;
        int64_t i64;
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;
    } value = {.u64 = 0};
    memcpy(&value, at, tensor->dtype->size);
    switch (tensor->dtype->element) {
    case 1: return value.f32;
    case 2: return value.i32;
    case 4: return (double)value.i64;
    case 7: return value.i16;
    case 9: return value.i8;
    case 10: return half(value.u16);
    case 11: return value.f64;
    case 13: return (double)value.u64;
    case 16: return value.u32;
    case 17: return value.u16;
    default: return *at; /* uint8, bool */
    }
}

void text_shape(Text *text, const Tensor *tensor) {
    text_add(text, "[");
    for (int k = 0; k < tensor->rank; k++)
        text_format(text, k ? ", %d" : "%d", tensor->shape[k]);
    text_add(text, "]");
}
