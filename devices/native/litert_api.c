#include "litert_api.h"

#include <dlfcn.h>
#include <string.h>

Library lrt;

static const struct {
    const char *name;
    void *into;
} symbols[] = {
#define SYMBOL(name) {"LiteRt" #name, &lrt.name}
    SYMBOL(CreateEnvironment), SYMBOL(CreateModelFromFile), SYMBOL(DestroyModel), SYMBOL(GetModelSignature),
    SYMBOL(GetSignatureSubgraph), SYMBOL(GetNumSubgraphOps), SYMBOL(GetNumSignatureInputs), SYMBOL(GetNumSignatureOutputs),
    SYMBOL(GetSignatureInputName), SYMBOL(GetSignatureOutputName), SYMBOL(GetSignatureInputTensorByIndex),
    SYMBOL(GetSignatureOutputTensorByIndex), SYMBOL(GetTensorName), SYMBOL(GetRankedTensorType), SYMBOL(CreateOptions),
    SYMBOL(DestroyOptions), SYMBOL(SetOptionsHardwareAccelerators), SYMBOL(CreateOpaqueOptions), SYMBOL(AddOpaqueOptions),
    SYMBOL(CreateCompiledModel), SYMBOL(DestroyCompiledModel), SYMBOL(CompiledModelResizeInputTensorNonStrict),
    SYMBOL(GetCompiledModelOutputTensorLayouts), SYMBOL(GetCompiledModelInputBufferRequirements),
    SYMBOL(GetCompiledModelOutputBufferRequirements), SYMBOL(CreateManagedTensorBufferFromRequirements),
    SYMBOL(DestroyTensorBuffer), SYMBOL(GetTensorBufferPackedSize), SYMBOL(LockTensorBuffer), SYMBOL(UnlockTensorBuffer),
    SYMBOL(RunCompiledModel), SYMBOL(CompiledModelIsFullyAccelerated), SYMBOL(CompiledModelGetProfiler), SYMBOL(StartProfiler), SYMBOL(StopProfiler), SYMBOL(ResetProfiler),
    SYMBOL(GetNumProfilerEvents), SYMBOL(GetProfilerEvents),
#undef SYMBOL
};

bool litert_open(const char *path, Fault *fault) {
    if (lrt.environment)
        return true;
    if (!lrt.library && !(lrt.library = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
        return fail(fault, "user", "put the library there anew", "LiteRT can't be loaded: %.400s", dlerror());
    for (size_t k = 0; k < sizeof symbols / sizeof symbols[0]; k++) {
        void *symbol = dlsym(lrt.library, symbols[k].name);
        if (!symbol)
            return fail(fault, "user", "its version is not the one that this runner was built for (" LITERT_VERSION ")", "%.300s has no %s", path, symbols[k].name);
        memcpy(symbols[k].into, &symbol, sizeof symbol);
    }
    Status status = lrt.CreateEnvironment(0, NULL, &lrt.environment);
    return status == 0 || fail(fault, "internal", "", "LiteRT made no environment (status %d)", status);
}

static const char *status_name(Status status) {
    static const struct {
        Status status;
        const char *name;
    } names[] = {
        {1, "invalid argument"}, {2, "out of memory"}, {3, "it failed while running"}, {4, "an input is missing"}, {5, "unsupported"},
        {6, "not found"}, {8, "wrong version"}, {500, "the file can't be read"}, {501, "it is no TFLite file, or damaged"}, {502, "a library is missing"},
        {504, "it could not be prepared"}, {1000, "an index out of bounds"}, {5000, "the shape of an operation is unknown"}, {5001, "shapes could not be derived"},
    };
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
        if (names[k].status == status)
            return names[k].name;
    return "it failed";
}

bool reject(const Session *session, Fault *fault, Status status, const char *doing) {
    return fail(fault, "rejected", "export it again, or name other runtimes with --runtime", "litert rejects %.200s: %s: %s (status %d)", session->file, doing, status_name(status), status);
}
