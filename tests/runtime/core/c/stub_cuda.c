/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for libcuda.so.1 that the C core and real cuda-bindings can call: it runs nothing on any device, it writes
 * down every call of the C core with its arguments, and fails where the test asks it to. As with the real driver, what
 * needs a context fails on a thread where none is current.
 *
 * Handles: whatever the test passed in; graphs made here are 0x900, 0x901 ... "Device memory" is host memory. A launch
 * of a graph of `stub_loop` does what the captured loop's would, with the velocity 1: begin 0x300, end 0x301, groups
 * 0x400 + 2 * side + turn, single 0x500 + side.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_BYTES = 1 << 16, UNKNOWN = 999, NO_CONTEXT = 201, CELLS = 64 };

static char log_text[LOG_BYTES];
static size_t log_length;
static char failing[64];
static int fail_after;
static _Thread_local void *current;
static uintptr_t next_graph = 0x900;
static void (*listener)(const char *what, uintptr_t handle);

#define EXPORT __attribute__((visibility("default")))

static int told(const char *call, const char *arguments, int answer)
{
    if (log_length > LOG_BYTES - 256) /* begins anew when full: tests that read it make few calls */
        log_length = 0;
    log_length += (size_t)snprintf(log_text + log_length, LOG_BYTES - log_length, "%s(%s)\n", call, arguments);
    if (strcmp(failing, call) == 0 && fail_after-- == 0)
        return UNKNOWN;
    return answer;
}

#define NEEDS_CONTEXT   \
    if (current == NULL) \
    return NO_CONTEXT

#define TELL(call, ...)                                       \
    char arguments[128];                                      \
    snprintf(arguments, sizeof arguments, __VA_ARGS__);       \
    return told(call, arguments, 0)

/* ---- what the test itself calls ---- */

EXPORT const char *stub_log(void) { return log_text; }
EXPORT void stub_reset(const char *call, int after)
{
    log_length = 0;
    log_text[0] = '\0';
    snprintf(failing, sizeof failing, "%s", call);
    fail_after = after;
    next_graph = 0x900;
}

static struct {
    const float *chunk_in, *step_in;
    float *x_out;
    int rows, columns, target, weights, step_floats, dt;
} loop;
static float loop_x[CELLS];

/* The pinned buffers of the loop under test, and where in them things lie (cuda_layout in cuda_loop.h). */
EXPORT void stub_loop(const float *chunk_in, const float *step_in, float *x_out, const int *layout)
{
    loop.chunk_in = chunk_in;
    loop.step_in = step_in;
    loop.x_out = x_out;
    memcpy(&loop.rows, layout, 6 * sizeof *layout);
}
/* Told "begin" with the stream, "made", "launch" and "destroy" with the graph, "drop" with a template. */
EXPORT void stub_listen(void (*callback)(const char *what, uintptr_t handle)) { listener = callback; }

static void tell_listener(const char *what, const void *handle)
{
    if (listener != NULL)
        listener(what, (uintptr_t)handle);
}

/* ---- the driver's functions ---- */

EXPORT int cuInit(unsigned flags) { TELL("cuInit", "%u", flags); }
EXPORT int cuDriverGetVersion(int *version) { *version = 12060; TELL("cuDriverGetVersion", "%s", ""); }
EXPORT int cuDeviceGetCount(int *count)
{
    *count = strcmp(failing, "no device") == 0 ? 0 : 1;
    TELL("cuDeviceGetCount", "%s", "");
}
EXPORT int cuDeviceGet(int *device, int ordinal) { *device = ordinal; TELL("cuDeviceGet", "%d", ordinal); }
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = (void *)0xc0;
    TELL("cuDevicePrimaryCtxRetain", "%d", device);
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { TELL("cuDevicePrimaryCtxRelease_v2", "%d", device); }
EXPORT int cuCtxSetCurrent(void *context)
{
    current = context;
    TELL("cuCtxSetCurrent", "%p", context);
}
EXPORT int cuGetErrorName(int error, const char **name)
{
    *name = error == UNKNOWN ? "CUDA_ERROR_UNKNOWN" : error == NO_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : NULL;
    return *name == NULL;
}
EXPORT int cuStreamBeginCapture_v2(void *stream, int mode)
{
    NEEDS_CONTEXT;
    tell_listener("begin", stream);
    TELL("cuStreamBeginCapture_v2", "%p, %d", stream, mode);
}
EXPORT int cuStreamEndCapture(void *stream, void **graph)
{
    *graph = strcmp(failing, "invalidated") == 0 ? NULL : (void *)0x800;
    TELL("cuStreamEndCapture", "%p", stream);
}
EXPORT int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags)
{
    *exec = (void *)next_graph++;
    tell_listener("made", *exec);
    TELL("cuGraphInstantiateWithFlags", "%p, %llu", graph, flags);
}
EXPORT int cuGraphDestroy(void *graph)
{
    tell_listener("drop", graph);
    TELL("cuGraphDestroy", "%p", graph);
}
EXPORT int cuGraphExecDestroy(void *exec)
{
    NEEDS_CONTEXT;
    tell_listener("destroy", exec);
    TELL("cuGraphExecDestroy", "%p", exec);
}
EXPORT int cuGraphUpload(void *exec, void *stream)
{
    NEEDS_CONTEXT;
    TELL("cuGraphUpload", "%p, %p", exec, stream);
}

static void run_step(const float *row)
{
    for (int i = 0; i < loop.rows * loop.columns; i++) {
        float tied = loop_x[i] + loop.chunk_in[loop.weights + i / loop.columns] * (row[loop.target + i] - loop_x[i]);
        loop_x[i] = tied + row[loop.dt + i / loop.columns];
    }
}

static void run_graph(uintptr_t exec)
{
    size_t bytes = (size_t)(loop.rows * loop.columns) * sizeof(float);
    if (loop.chunk_in == NULL)
        return;
    if (exec == 0x300)
        memcpy(loop_x, loop.chunk_in, bytes);
    if (exec == 0x301)
        memcpy(loop.x_out, loop_x, bytes);
    if (exec >= 0x400 && exec <= 0x403)
        for (uintptr_t row = 0; row < 2; row++)
            run_step(loop.step_in + (exec % 2 * 2 + row) * (size_t)loop.step_floats);
    if (exec == 0x500 || exec == 0x501)
        run_step(loop.step_in + 4 * (size_t)loop.step_floats);
}
EXPORT int cuGraphLaunch(void *exec, void *stream)
{
    NEEDS_CONTEXT;
    run_graph((uintptr_t)exec);
    tell_listener("launch", exec);
    TELL("cuGraphLaunch", "%p, %p", exec, stream);
}
EXPORT int cuStreamSynchronize(void *stream)
{
    NEEDS_CONTEXT;
    TELL("cuStreamSynchronize", "%p", stream);
}
EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    NEEDS_CONTEXT;
    TELL("cuStreamWaitEvent", "%p, %p, %u", stream, event, flags);
}
EXPORT int cuEventRecord(void *event, void *stream)
{
    NEEDS_CONTEXT;
    TELL("cuEventRecord", "%p, %p", event, stream);
}
EXPORT int cuEventSynchronize(void *event)
{
    NEEDS_CONTEXT;
    TELL("cuEventSynchronize", "%p", event);
}

/* ---- what only cuda-bindings calls ---- */

static uintptr_t next_handle = 0x700000000000;

static int made(void **handle)
{
    NEEDS_CONTEXT;
    *handle = (void *)(next_handle += 16);
    return 0;
}

static int memory(void **address, size_t bytes)
{
    NEEDS_CONTEXT;
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *address == NULL ? 2 : 0;
}

static int freed(void *address)
{
    NEEDS_CONTEXT;
    free(address);
    return 0;
}

static int copied(void *to, const void *from, size_t bytes)
{
    NEEDS_CONTEXT;
    memcpy(to, from, bytes);
    return 0;
}

EXPORT int cuDeviceGetName(char *name, int length, int device)
{
    snprintf(name, (size_t)length, "Stub GPU %d", device);
    return 0;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    (void)device;
    *bytes = (size_t)64 << 30;
    return 0;
}
/* Attributes 75 and 76: compute capability 9.0; 16: multiprocessors; 18: integrated. */
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 16 ? 132 : 0;
    return 0;
}
EXPORT int cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    NEEDS_CONTEXT;
    *least = 0;
    *greatest = -5;
    return 0;
}
EXPORT int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
    (void)flags, (void)priority;
    return made(stream);
}
EXPORT int cuEventCreate(void **event, unsigned flags)
{
    (void)flags;
    return made(event);
}
EXPORT int cuStreamDestroy_v2(void *stream)
{
    (void)stream;
    NEEDS_CONTEXT;
    return 0;
}
EXPORT int cuEventDestroy_v2(void *event)
{
    (void)event;
    NEEDS_CONTEXT;
    return 0;
}
EXPORT int cuMemAlloc_v2(void **device, size_t bytes) { return memory(device, bytes); }
EXPORT int cuMemHostAlloc(void **host, size_t bytes, unsigned flags)
{
    (void)flags;
    return memory(host, bytes);
}
EXPORT int cuMemFree_v2(void *device) { return freed(device); }
EXPORT int cuMemFreeHost(void *host) { return freed(host); }
EXPORT int cuMemHostGetDevicePointer_v2(void **device, void *host, unsigned flags)
{
    (void)flags;
    NEEDS_CONTEXT;
    *device = host;
    return 0;
}
EXPORT int cuMemsetD8Async(void *device, unsigned char value, size_t bytes, void *stream)
{
    (void)stream;
    NEEDS_CONTEXT;
    memset(device, value, bytes);
    return 0;
}
EXPORT int cuMemcpyHtoDAsync_v2(void *device, const void *host, size_t bytes, void *stream)
{
    (void)stream;
    return copied(device, host, bytes);
}
EXPORT int cuMemcpyDtoHAsync_v2(void *host, const void *device, size_t bytes, void *stream)
{
    (void)stream;
    return copied(host, device, bytes);
}

typedef struct { /* CUDA_MEMCPY2D */
    size_t from_x, from_y;
    int from_type;
    const void *from_host;
    const char *from_device;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    int to_type;
    void *to_host;
    char *to_device;
    void *to_array;
    size_t to_pitch, width, height;
} memcpy_2d;

EXPORT int cuMemcpy2DAsync_v2(const memcpy_2d *copy, void *stream)
{
    (void)stream;
    NEEDS_CONTEXT;
    for (size_t row = 0; row < copy->height; row++)
        memcpy(copy->to_device + row * copy->to_pitch, copy->from_device + row * copy->from_pitch, copy->width);
    return 0;
}
EXPORT int cuGetErrorString(int error, const char **text)
{
    (void)error;
    *text = "stub";
    return 0;
}
EXPORT int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    (void)version, (void)flags;
    char newer[128];
    Dl_info self;
    snprintf(newer, sizeof newer, "%s_v2", symbol);
    void *library = dladdr((void *)&next_handle, &self) != 0 ? dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD) : NULL;
    *function = library == NULL ? NULL : dlsym(library, newer);
    if (*function == NULL && library != NULL)
        *function = dlsym(library, symbol);
    if (status != NULL)
        *status = *function == NULL;
    return 0;
}
EXPORT int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}
