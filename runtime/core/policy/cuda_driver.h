/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA driver, opened at run time: no header of it is needed and nothing links to it.
 *
 * Handles (streams, events, graphs) are made elsewhere or here and are plain
 * addresses; device addresses are 64-bit numbers. Signatures as in the driver
 * API of CUDA 11.4 to 13; the `_v2` symbols are what cuda.h names without it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int cuda_result; /* CUresult: 0 is success */
typedef struct cuda_stream_s *cuda_stream;
typedef struct cuda_event_s *cuda_event;
typedef struct cuda_graph_s *cuda_graph;
typedef struct cuda_exec_s *cuda_exec; /* an instantiated graph */
typedef struct cuda_context_s *cuda_context;

enum { CUDA_CAPTURE_THREAD_LOCAL = 1 };

/* X(symbol, name here, arguments); each returns a cuda_result */
#define CUDA_CALLS(X)                                                                                                  \
    X(cuInit, init, (unsigned flags))                                                                                  \
    X(cuDriverGetVersion, version, (int *version))                                                                     \
    X(cuDeviceGetCount, device_count, (int *count))                                                                    \
    X(cuDeviceGet, device_get, (int *device, int ordinal))                                                             \
    X(cuDevicePrimaryCtxRetain, context_retain, (cuda_context *context, int device))                                   \
    X(cuDevicePrimaryCtxRelease_v2, context_release, (int device))                                                     \
    X(cuCtxSetCurrent, context_set, (cuda_context context))                                                            \
    X(cuGetErrorName, error_name, (cuda_result error, const char **name))                                              \
    X(cuStreamBeginCapture_v2, begin_capture, (cuda_stream stream, int mode))                                          \
    X(cuStreamEndCapture, end_capture, (cuda_stream stream, cuda_graph *graph))                                        \
    X(cuGraphInstantiateWithFlags, instantiate, (cuda_exec *exec, cuda_graph graph, unsigned long long flags))         \
    X(cuGraphDestroy, graph_destroy, (cuda_graph graph))                                                               \
    X(cuGraphExecDestroy, exec_destroy, (cuda_exec exec))                                                              \
    X(cuGraphUpload, upload, (cuda_exec exec, cuda_stream stream))                                                     \
    X(cuGraphLaunch, launch, (cuda_exec exec, cuda_stream stream))                                                     \
    X(cuStreamSynchronize, stream_sync, (cuda_stream stream))                                                          \
    X(cuStreamWaitEvent, stream_wait, (cuda_stream stream, cuda_event event, unsigned flags))                          \
    X(cuEventRecord, event_record, (cuda_event event, cuda_stream stream))                                             \
    X(cuEventSynchronize, event_sync, (cuda_event event))

#define CUDA_MEMBER(symbol, name, arguments) cuda_result(*name) arguments;
typedef struct {
    CUDA_CALLS(CUDA_MEMBER)
} cuda_table;

typedef struct {
    cuda_table call;
    void *library;
    cuda_context context; /* the device's primary context */
    int device, version;
    char message[240]; /* of the last failure, in one line */
} cuda_driver;

/* Opens the library, starts the driver, holds the primary context of device `ordinal`. False: `message` names which
 * of dlopen, a symbol, cuInit, the device count or the context failed; nothing is left open. */
bool cuda_open(cuda_driver *driver, const char *library, int ordinal);
void cuda_close(cuda_driver *driver);

/* Makes the context current on the calling thread; every entry from another thread begins with it. */
bool cuda_enter(cuda_driver *driver);

/* False, with `message` set, when `result` is a failure of `what`. */
bool cuda_ok(cuda_driver *driver, cuda_result result, const char *what);

/* Capture of one stream's work, in this thread only. `end` instantiates the graph and uploads it; after a failure in
 * between, `cancel` leaves the stream usable. */
bool cuda_capture_begin(cuda_driver *driver, cuda_stream stream);
bool cuda_capture_end(cuda_driver *driver, cuda_stream stream, cuda_exec *exec);
void cuda_capture_cancel(cuda_driver *driver, cuda_stream stream);
