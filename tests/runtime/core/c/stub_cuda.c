/* A stand-in for libcuda.so.1, built by tests/engines/test_cuda_launcher.py: it runs nothing on any device, it writes down
 * every call with its arguments, and fails where the test asks it to.
 *
 * Handles: whatever the test passed in; graphs made here are 0x900, 0x901 ... Device memory is a small array behind
 * the addresses 0x10000.., so that copies can be followed; a launch of the graph 0x500 + k does what step k would,
 * x' = x + dt, which lets the test see that steps ran, in which order and with which dt.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { LOG_BYTES = 1 << 16, BASE = 0x10000, MEMORY = 4096, UNKNOWN = 999 };

static char log_text[LOG_BYTES];
static size_t log_length;
static char failing[64];
static int fail_after;
static unsigned char memory[MEMORY];
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
EXPORT void *stub_memory(void) { return memory; }
/* Told "begin" with the stream, "made" with the graph, "launch" with the graph. */
EXPORT void stub_listen(void (*callback)(const char *what, uintptr_t handle)) { listener = callback; }

static void tell_listener(const char *what, const void *handle)
{
    if (listener != NULL)
        listener(what, (uintptr_t)handle);
}

/* Addresses outside the small array are the test's own memory. */
static void *place(uint64_t device)
{
    return device >= BASE && device < BASE + MEMORY ? (void *)(memory + (device - BASE)) : (void *)(uintptr_t)device;
}

/* ---- the driver's functions ---- */

EXPORT int cuInit(unsigned flags) { TELL("cuInit", "%u", flags); }
EXPORT int cuDriverGetVersion(int *version) { *version = 12060; TELL("cuDriverGetVersion", "%s", ""); }
EXPORT int cuDeviceGetCount(int *count) { *count = strcmp(failing, "no device") == 0 ? 0 : 1; TELL("cuDeviceGetCount", "%s", ""); }
EXPORT int cuDeviceGet(int *device, int ordinal) { *device = ordinal; TELL("cuDeviceGet", "%d", ordinal); }
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0xc0; TELL("cuDevicePrimaryCtxRetain", "%d", device); }
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { TELL("cuDevicePrimaryCtxRelease_v2", "%d", device); }
EXPORT int cuCtxSetCurrent(void *context) { TELL("cuCtxSetCurrent", "%p", context); }
EXPORT int cuGetErrorName(int error, const char **name)
{
    *name = error == UNKNOWN ? "CUDA_ERROR_UNKNOWN" : NULL;
    return *name == NULL;
}
EXPORT int cuStreamBeginCapture_v2(void *stream, int mode)
{
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
EXPORT int cuGraphDestroy(void *graph) { TELL("cuGraphDestroy", "%p", graph); }
EXPORT int cuGraphExecDestroy(void *exec) { TELL("cuGraphExecDestroy", "%p", exec); }
EXPORT int cuGraphUpload(void *exec, void *stream) { TELL("cuGraphUpload", "%p, %p", exec, stream); }

/* 0x5kk is step k: x[(k + 1) % 2] = x[k % 2] + its own dt; x lie at BASE and BASE + 256, dt of step k at BASE + 512 + 4k. */
static void run_graph(uintptr_t exec)
{
    if (exec < 0x500 || exec > 0x53f)
        return;
    int k = (int)(exec - 0x500);
    float x[4], dt;
    memcpy(x, memory + (k % 2) * 256, sizeof x);
    memcpy(&dt, memory + 512 + 4 * k, sizeof dt);
    for (int i = 0; i < 4; i++)
        x[i] += dt;
    memcpy(memory + ((k + 1) % 2) * 256, x, sizeof x);
}
EXPORT int cuGraphLaunch(void *exec, void *stream)
{
    run_graph((uintptr_t)exec);
    tell_listener("launch", exec);
    TELL("cuGraphLaunch", "%p, %p", exec, stream);
}
EXPORT int cuStreamSynchronize(void *stream) { TELL("cuStreamSynchronize", "%p", stream); }
EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { TELL("cuStreamWaitEvent", "%p, %p, %u", stream, event, flags); }
EXPORT int cuEventRecord(void *event, void *stream) { TELL("cuEventRecord", "%p, %p", event, stream); }
EXPORT int cuEventSynchronize(void *event) { TELL("cuEventSynchronize", "%p", event); }
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t device, const void *host, size_t bytes, void *stream)
{
    memcpy(place(device), host, bytes);
    TELL("cuMemcpyHtoDAsync_v2", "0x%llx, %zu, %p", (unsigned long long)device, bytes, stream);
}
EXPORT int cuMemcpyDtoHAsync_v2(void *host, uint64_t device, size_t bytes, void *stream)
{
    memcpy(host, place(device), bytes);
    TELL("cuMemcpyDtoHAsync_v2", "0x%llx, %zu, %p", (unsigned long long)device, bytes, stream);
}
