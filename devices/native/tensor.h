/* Arrays in files: raw little-endian values in C order. */
#ifndef TRIMTAB_TENSOR_H
#define TRIMTAB_TENSOR_H

#include <stdint.h>

#include "json.h"

#define MOST_DIMENSIONS 8

typedef struct {
    const char *name; /* NumPy's */
    size_t size;
    int element; /* LiteRtElementType */
} Dtype;

typedef struct {
    const Dtype *dtype;
    int rank;
    int32_t shape[MOST_DIMENSIONS];
    size_t count, bytes;
    unsigned char *data;
} Tensor;

/* NULL for a type that LiteRT has no tensors of. */
const Dtype *dtype_named(const char *name);
const Dtype *dtype_of(int element);

/* The sizes of `shape`, a list of whole numbers; sets count and bytes. `dtype` must be set. */
bool tensor_shape(Tensor *tensor, const Json *shape, Fault *fault);
bool tensor_size(Tensor *tensor, Fault *fault);

/* A tensor whose file, shape and dtype `told` names; a given `dtype` takes the place of the one that is told. */
bool tensor_read(Tensor *tensor, const Json *told, const Dtype *dtype, Fault *fault);
bool tensor_write(const Tensor *tensor, const char *file, Fault *fault);
void tensor_free(Tensor *tensor);

bool same_shape(const Tensor *left, const Tensor *right);
double tensor_value(const Tensor *tensor, size_t index);
void text_shape(Text *text, const Tensor *tensor);

#endif
