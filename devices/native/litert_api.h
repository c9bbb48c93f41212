/* What litert.c, profile.c and litert_api.c share: LiteRT's C interface, and what a session is made of. */
#ifndef TRIMTAB_LITERT_API_H
#define TRIMTAB_LITERT_API_H

#include "litert.h"

/* The declarations of LiteRT 2.3 that are used here, written down anew: its wheel brings no headers. */
typedef void *Handle;
typedef int Status;
typedef struct {
    unsigned rank : 7;
    bool has_strides : 1;
    int32_t dimensions[MOST_DIMENSIONS];
    uint32_t strides[MOST_DIMENSIONS];
} Layout;
typedef struct {
    int element;
    Layout layout;
} RankedType;
_Static_assert(sizeof(RankedType) == 72, "LiteRT's layout of a ranked tensor type");

typedef struct {
    void *library;
    Handle environment;
    Status (*CreateEnvironment)(int, const void *, Handle *);
    Status (*CreateModelFromFile)(Handle, const char *, Handle *);
    void (*DestroyModel)(Handle);
    Status (*GetModelSignature)(Handle, size_t, Handle *);
    Status (*GetSignatureSubgraph)(Handle, Handle *);
    Status (*GetNumSubgraphOps)(Handle, size_t *);
    Status (*GetNumSignatureInputs)(Handle, size_t *);
    Status (*GetNumSignatureOutputs)(Handle, size_t *);
    Status (*GetSignatureInputName)(Handle, size_t, const char **);
    Status (*GetSignatureOutputName)(Handle, size_t, const char **);
    Status (*GetSignatureInputTensorByIndex)(Handle, size_t, Handle *);
    Status (*GetSignatureOutputTensorByIndex)(Handle, size_t, Handle *);
    Status (*GetTensorName)(Handle, const char **);
    Status (*GetRankedTensorType)(Handle, RankedType *);
    Status (*CreateOptions)(Handle *);
    void (*DestroyOptions)(Handle);
    Status (*SetOptionsHardwareAccelerators)(Handle, int);
    Status (*CreateOpaqueOptions)(const char *, void *, void (*)(void *), Handle *);
    Status (*AddOpaqueOptions)(Handle, Handle);
    Status (*CreateCompiledModel)(Handle, Handle, Handle, Handle *);
    void (*DestroyCompiledModel)(Handle);
    Status (*CompiledModelResizeInputTensorNonStrict)(Handle, size_t, size_t, const int *, size_t);
    Status (*GetCompiledModelOutputTensorLayouts)(Handle, size_t, size_t, Layout *, bool);
    Status (*GetCompiledModelInputBufferRequirements)(Handle, size_t, size_t, Handle *);
    Status (*GetCompiledModelOutputBufferRequirements)(Handle, size_t, size_t, Handle *);
    Status (*CreateManagedTensorBufferFromRequirements)(Handle, const RankedType *, Handle, Handle *);
    void (*DestroyTensorBuffer)(Handle);
    Status (*GetTensorBufferPackedSize)(Handle, size_t *);
    Status (*LockTensorBuffer)(Handle, void **, int);
    Status (*UnlockTensorBuffer)(Handle);
    Status (*RunCompiledModel)(Handle, size_t, size_t, Handle *, size_t, Handle *);
    Status (*CompiledModelIsFullyAccelerated)(Handle, bool *);
    Status (*CompiledModelGetProfiler)(Handle, Handle *);
    Status (*StartProfiler)(Handle);
    Status (*StopProfiler)(Handle);
    Status (*ResetProfiler)(Handle);
    Status (*GetNumProfilerEvents)(Handle, int *);
    Status (*GetProfilerEvents)(Handle, int, void *);
} Library;
extern Library lrt;


struct Session {
    char *file; /* without its folder */
    Handle model, compiled;
    Status last;
    int64_t graph_ops;
    size_t ports[2], total[2]; /* asked for, and in the file; of inputs and outputs */
    size_t *place[2];          /* port → index in the signature */
    Handle *buffers[2];        /* by index in the signature */
    RankedType *types[2];
    Tensor *shapes; /* of the inputs in place now, by port; without data */
};

enum { IN, OUT };

/* Always false, with a fault of kind "rejected" that says what LiteRT was asked to do. */
bool reject(const Session *session, Fault *fault, Status status, const char *doing);

#endif
