/* LiteRT through the C interface of its shared library, opened at run time: one library, sessions with fixed inputs and outputs. */
#ifndef TRIMTAB_LITERT_H
#define TRIMTAB_LITERT_H

#include "tensor.h"

typedef struct Session Session;

/* The names that a caller knows an artifact's tensors by. */
typedef struct {
    size_t count;
    const char **names;
    const Dtype **dtypes;
} Ports;

typedef struct {
    int threads;
    bool delegate, profiling;
} Settings;

typedef struct {
    char *name, *kind;
    const char *where;
    double ticks; /* of `now`, over all runs */
} Op;

typedef struct {
    size_t count;
    Op *ops;
    char reason[256];
} Profile;

/* The library at `path`, opened once. */
bool litert_open(const char *path, Fault *fault);

/* An artifact with memory for inputs of the shapes of `feed`, which has one tensor per input port. NULL and a fault otherwise. */
Session *session_load(const char *file, const Ports *inputs, const Ports *outputs, const Tensor *feed, const Settings *settings, Fault *fault);
void session_free(Session *session);

/* The inputs copied in; memory is made anew when they have other shapes than the last ones. */
bool session_feed(Session *session, const Tensor *feed, Fault *fault);
/* The inputs copied in where their shapes are known to be the present ones: what a timed call of several inputs does. */
bool session_refill(Session *session, const Tensor *feed);
/* One inference. */
bool session_invoke(Session *session);
bool session_invoked(Session *session, Fault *fault);

/* A copy of the output behind the k-th output port. */
bool session_output(Session *session, size_t k, Tensor *tensor, Fault *fault);

/* Whether XNNPACK took every operation. */
bool session_delegated(const Session *session);

/* How many operations the file's main graph has; negative when LiteRT won't tell. */
int64_t session_graph_ops(const Session *session);

/* The operations of one inference, averaged over `runs`; the session must have been loaded for profiling. */
bool session_profile(Session *session, int64_t runs, Profile *profile, Fault *fault);
void profile_free(Profile *profile);

/* Keeps what is said on standard error, the only place where LiteRT tells why it refuses a file. The end passes it on, and adds
 * the lines that tell of an error to the fault when there is one. */
typedef struct {
    int held, kept;
} Listener;
Listener listen_begin(void);
void listen_end(Listener listener, Fault *fault);

#endif
