#define _GNU_SOURCE
#include "litert_api.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CPU 1 /* kLiteRtHwAcceleratorCpu */

static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
static Listener listening = {-1, -1};

/* A library that crashes is heard all the same. */
static void on_crash(int number) {
    char bytes[512];
    ssize_t length;
    dup2(listening.held, 2);
    for (off_t at = 0; (length = pread(listening.kept, bytes, sizeof bytes, at)) > 0; at += length)
        if (write(2, bytes, (size_t)length) < 0)
            break;
    signal(number, SIG_DFL);
    raise(number);
}

Listener listen_begin(void) {
    Listener listener = {-1, memfd_create("said", MFD_CLOEXEC)};
    fflush(stderr);
    if (listener.kept >= 0 && (listener.held = dup(2)) >= 0) {
        listening = listener;
        for (size_t k = 0; k < sizeof fatal / sizeof fatal[0]; k++)
            signal(fatal[k], on_crash);
        dup2(listener.kept, 2);
    }
    return listener;
}

void listen_end(Listener listener, Fault *fault) {
    char said[4096], *line, *rest = said;
    if (listener.held >= 0) {
        fflush(stderr);
        dup2(listener.held, 2);
        for (size_t k = 0; k < sizeof fatal / sizeof fatal[0]; k++)
            signal(fatal[k], SIG_DFL);
        off_t end = lseek(listener.kept, 0, SEEK_END), begin = end > (off_t)sizeof said - 1 ? end - ((off_t)sizeof said - 1) : 0;
        ssize_t length = end > 0 ? pread(listener.kept, said, sizeof said - 1, begin) : 0;
        said[length > 0 ? length : 0] = '\0';
        fputs(said, stderr);
        while (fault && (line = strsep(&rest, "\n"))) {
            size_t used = strlen(fault->what);
            if (strncmp(line, "ERROR: ", 7) == 0 && used + 20 < sizeof fault->what) {
                char *place = line[7] == '[' ? strstr(line, "] ") : NULL; /* "[file.cc:12] why" */
                snprintf(fault->what + used, sizeof fault->what - used, "; %.300s", place ? place + 2 : line + 7);
            }
        }
        close(listener.held);
    }
    if (listener.kept >= 0)
        close(listener.kept);
}

static bool add_option(Handle options, const char *identifier, const char *toml) {
    Handle option;
    char *copy = strdup(toml); /* LiteRT frees it */
    if (!copy || lrt.CreateOpaqueOptions(identifier, copy, free, &option) != 0) {
        free(copy);
        return false;
    }
    return lrt.AddOpaqueOptions(options, option) == 0;
}

/* The index of each port's tensor, by the name in the signature or the tensor's own. */
static bool find_ports(Session *session, Handle signature, const Ports *ports, int side, Fault *fault) {
    Status (*name_of)(Handle, size_t, const char **) = side == IN ? lrt.GetSignatureInputName : lrt.GetSignatureOutputName;
    Status (*tensor_at)(Handle, size_t, Handle *) = side == IN ? lrt.GetSignatureInputTensorByIndex : lrt.GetSignatureOutputTensorByIndex;
    size_t total = 0;
    if ((side == IN ? lrt.GetNumSignatureInputs : lrt.GetNumSignatureOutputs)(signature, &total) != 0 || total > 4096)
        return reject(session, fault, 3, "its signature can't be read");
    session->total[side] = total;
    session->ports[side] = ports->count;
    session->buffers[side] = must_have(total * sizeof(Handle));
    session->types[side] = must_have(total * sizeof(RankedType));
    session->place[side] = must_have(ports->count * sizeof(size_t));
    for (size_t k = 0; k < ports->count; k++)
        session->place[side][k] = total;
    for (size_t index = 0; index < total; index++) {
        const char *name = NULL, *own = NULL;
        Handle tensor;
        if (name_of(signature, index, &name) != 0 || tensor_at(signature, index, &tensor) != 0 || lrt.GetTensorName(tensor, &own) != 0)
            return reject(session, fault, 3, "its signature can't be read");
        if (lrt.GetRankedTensorType(tensor, &session->types[side][index]) != 0)
            return reject(session, fault, 5, "a tensor has no rank");
        for (size_t k = 0; k < ports->count; k++)
            if ((name && strcmp(ports->names[k], name) == 0) || (own && strcmp(ports->names[k], own) == 0))
                session->place[side][k] = index;
    }
    for (size_t k = 0; k < ports->count; k++) {
        size_t index = session->place[side][k];
        if (index == total)
            return fail(fault, "rejected", "export it again", "litert rejects %.200s: it has no %s %.200s", session->file, side == IN ? "input" : "output", ports->names[k]);
        if (!dtype_of(session->types[side][index].element) || dtype_of(session->types[side][index].element) != ports->dtypes[k])
            return fail(fault, "rejected", "export it again", "litert rejects %.200s: %.200s is not of type %s", session->file, ports->names[k], ports->dtypes[k]->name);
    }
    if (side == IN && ports->count != total)
        return fail(fault, "rejected", "export it again", "litert rejects %.200s: it has %zu inputs, %zu are known", session->file, total, ports->count);
    return true;
}

static void drop_buffers(Session *session) {
    for (int side = IN; side <= OUT; side++)
        for (size_t k = 0; session->buffers[side] && k < session->total[side]; k++) {
            if (session->buffers[side][k])
                lrt.DestroyTensorBuffer(session->buffers[side][k]);
            session->buffers[side][k] = NULL;
        }
}

static bool make_buffers(Session *session, int side, Fault *fault) {
    Status (*needs)(Handle, size_t, size_t, Handle *) = side == IN ? lrt.GetCompiledModelInputBufferRequirements : lrt.GetCompiledModelOutputBufferRequirements;
    for (size_t k = 0; k < session->total[side]; k++) {
        Handle requirements;
        Status status = needs(session->compiled, 0, k, &requirements);
        if (status == 0)
            status = lrt.CreateManagedTensorBufferFromRequirements(lrt.environment, &session->types[side][k], requirements, &session->buffers[side][k]);
        if (status != 0)
            return reject(session, fault, status, "no memory for its tensors");
    }
    return true;
}

static bool has_shape(const RankedType *type, const Tensor *tensor) {
    bool same = type->layout.rank == (unsigned)tensor->rank;
    for (int k = 0; same && k < tensor->rank; k++)
        same = type->layout.dimensions[k] == tensor->shape[k];
    return same;
}

/* Memory for inputs of these shapes. */
static bool prepare(Session *session, const Tensor *feed, Fault *fault) {
    Status status;
    drop_buffers(session);
    for (size_t k = 0; k < session->ports[IN]; k++) {
        RankedType *type = &session->types[IN][session->place[IN][k]];
        session->shapes[k].rank = -1; /* until everything fits */
        if (has_shape(type, &feed[k]))
            continue;
        status = lrt.CompiledModelResizeInputTensorNonStrict(session->compiled, 0, session->place[IN][k], feed[k].shape, (size_t)feed[k].rank);
        if (status != 0)
            return reject(session, fault, status, "an input can't have the size that is asked for");
        type->layout.rank = (unsigned)feed[k].rank & 127;
        memcpy(type->layout.dimensions, feed[k].shape, sizeof feed[k].shape);
    }
    size_t outputs = session->total[OUT];
    Layout *layouts = must_have(outputs * sizeof *layouts);
    status = lrt.GetCompiledModelOutputTensorLayouts(session->compiled, 0, outputs, layouts, true);
    for (size_t k = 0; status == 0 && k < outputs; k++)
        session->types[OUT][k].layout = layouts[k];
    free(layouts);
    if (status != 0)
        return reject(session, fault, status, "the sizes of its outputs can't be told");
    if (!make_buffers(session, IN, fault) || !make_buffers(session, OUT, fault))
        return false;
    for (size_t k = 0; k < session->ports[IN]; k++) {
        session->shapes[k] = feed[k];
        session->shapes[k].data = NULL;
    }
    return true;
}

static bool compile(Session *session, const Settings *settings, Fault *fault) {
    Handle options;
    char toml[128];
    Status status = lrt.CreateOptions(&options);
    if (status != 0)
        return reject(session, fault, status, "no options");
    snprintf(toml, sizeof toml, "num_threads = %d\nkernel_mode = \"%s\"\n", settings->threads, settings->delegate ? "xnnpack" : "builtin");
    bool good = lrt.SetOptionsHardwareAccelerators(options, CPU) == 0 && add_option(options, "xnnpack", toml);
    if (settings->profiling)
        good = good && add_option(options, "runtime_options_string", "enable_profiling = true\n");
    status = good ? lrt.CreateCompiledModel(lrt.environment, session->model, options, &session->compiled) : 1;
    lrt.DestroyOptions(options);
    if (status != 0)
        session->compiled = NULL;
    return status == 0 || reject(session, fault, status, "it can't be prepared");
}

static bool load(Session *session, const char *file, const Ports *inputs, const Ports *outputs, const Tensor *feed, const Settings *settings, Fault *fault) {
    Handle signature, graph;
    size_t ops;
    Status status = lrt.CreateModelFromFile(lrt.environment, file, &session->model);
    if (status != 0) {
        session->model = NULL;
        return reject(session, fault, status, "it can't be loaded");
    }
    if ((status = lrt.GetModelSignature(session->model, 0, &signature)) != 0)
        return reject(session, fault, status, "it has no graph to run");
    bool counted = lrt.GetSignatureSubgraph(signature, &graph) == 0 && lrt.GetNumSubgraphOps(graph, &ops) == 0;
    session->graph_ops = counted ? (int64_t)ops : -1;
    return find_ports(session, signature, inputs, IN, fault) && find_ports(session, signature, outputs, OUT, fault) && compile(session, settings, fault) && prepare(session, feed, fault);
}

Session *session_load(const char *file, const Ports *inputs, const Ports *outputs, const Tensor *feed, const Settings *settings, Fault *fault) {
    const char *slash = strrchr(file, '/');
    Session *session = must_have(sizeof *session);
    session->file = must_copy(slash ? slash + 1 : file);
    session->shapes = must_have(inputs->count * sizeof *session->shapes);
    if (load(session, file, inputs, outputs, feed, settings, fault))
        return session;
    session_free(session);
    return NULL;
}

void session_free(Session *session) {
    if (!session)
        return;
    drop_buffers(session);
    if (session->compiled)
        lrt.DestroyCompiledModel(session->compiled);
    if (session->model)
        lrt.DestroyModel(session->model);
    for (int side = IN; side <= OUT; side++) {
        free(session->place[side]);
        free(session->buffers[side]);
        free(session->types[side]);
    }
    free(session->shapes);
    free(session->file);
    free(session);
}

/* The bytes of a tensor copied into its buffer, or out of it. */
static bool copy(Session *session, int side, size_t index, void *bytes, size_t size) {
    Handle buffer = session->buffers[side][index];
    size_t held = 0;
    void *memory;
    if (!buffer || (session->last = lrt.GetTensorBufferPackedSize(buffer, &held)) != 0)
        return false;
    if (held != size) {
        session->last = 1;
        return false;
    }
    if ((session->last = lrt.LockTensorBuffer(buffer, &memory, side == IN ? 1 : 0)) != 0)
        return false;
    if (side == IN)
        memcpy(memory, bytes, size);
    else
        memcpy(bytes, memory, size);
    return (session->last = lrt.UnlockTensorBuffer(buffer)) == 0;
}

bool session_refill(Session *session, const Tensor *feed) {
    for (size_t k = 0; k < session->ports[IN]; k++)
        if (!copy(session, IN, session->place[IN][k], feed[k].data, feed[k].bytes))
            return false;
    return true;
}

bool session_feed(Session *session, const Tensor *feed, Fault *fault) {
    for (size_t k = 0; k < session->ports[IN]; k++)
        if (session->shapes[k].rank < 0 || !same_shape(&session->shapes[k], &feed[k])) {
            if (!prepare(session, feed, fault))
                return false;
            break;
        }
    return session_refill(session, feed) || reject(session, fault, session->last, "its inputs can't be filled");
}

bool session_invoke(Session *session) {
    session->last = lrt.RunCompiledModel(session->compiled, 0, session->total[IN], session->buffers[IN], session->total[OUT], session->buffers[OUT]);
    return session->last == 0;
}

bool session_invoked(Session *session, Fault *fault) {
    return session_invoke(session) || reject(session, fault, session->last, "it does not run");
}

bool session_output(Session *session, size_t k, Tensor *tensor, Fault *fault) {
    size_t index = session->place[OUT][k];
    const RankedType *type = &session->types[OUT][index];
    *tensor = (Tensor){.dtype = dtype_of(type->element), .rank = (int)type->layout.rank};
    if (!tensor->dtype || tensor->rank > MOST_DIMENSIONS)
        return reject(session, fault, 5, "an output of an unknown type");
    memcpy(tensor->shape, type->layout.dimensions, sizeof tensor->shape);
    if (!tensor_size(tensor, fault))
        return false;
    tensor->data = must_have(tensor->bytes);
    if (copy(session, OUT, index, tensor->data, tensor->bytes))
        return true;
    tensor_free(tensor);
    return reject(session, fault, session->last, "an output can't be read");
}

int64_t session_graph_ops(const Session *session) {
    return session->graph_ops;
}

bool session_delegated(const Session *session) {
    bool all = false;
    return lrt.CompiledModelIsFullyAccelerated(session->compiled, &all) == 0 && all;
}
