/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "ort_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { LOG_ERRORS = 3, DEVICE_ALLOCATOR = 0, DEFAULT_MEMORY = 0 };

typedef void (*any_function)(void);

typedef struct {
    const any_function *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} api_base;

static bool fail(ort_reason *reason, const char *what)
{
    snprintf(reason->text, sizeof reason->text, "%s", what);
    return false;
}

bool ort_check(const ort_runtime *runtime, ort_status *status, ort_reason *reason)
{
    if (status == NULL)
        return true;
    fail(reason, runtime->call.message(status));
    runtime->call.release_status(status);
    return false;
}

/* ISO C has no conversion between object and function pointers of different
 * types in one assignment; a copy of the bytes is what POSIX dlsym asks for. */
static void take_functions(ort_runtime *runtime, const any_function *table)
{
#define TAKE(slot, result, name, arguments) memcpy(&runtime->call.name, &table[slot], sizeof runtime->call.name);
    ORT_FUNCTIONS(TAKE)
}

static bool make_environment(ort_runtime *runtime, int threads, bool spin, ort_reason *reason)
{
    ort_threading *threading = NULL;
    bool made = ort_check(runtime, runtime->call.create_threading(&threading), reason)
        && ort_check(runtime, runtime->call.set_threads(threading, threads), reason)
        && ort_check(runtime, runtime->call.set_spin(threading, spin ? 1 : 0), reason)
        && ort_check(runtime,
                     runtime->call.create_environment(LOG_ERRORS, "vla-edge", threading, &runtime->environment), reason)
        && ort_check(runtime, runtime->call.create_memory(DEVICE_ALLOCATOR, DEFAULT_MEMORY, &runtime->memory), reason)
        && ort_check(runtime, runtime->call.create_prepacked(&runtime->prepacked), reason);
    if (threading != NULL)
        runtime->call.release_threading(threading);
    return made;
}

bool ort_open(ort_runtime *runtime, const char *path, int threads, bool spin, ort_reason *reason)
{
    memset(runtime, 0, sizeof *runtime);
    runtime->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (runtime->library == NULL)
        return fail(reason, dlerror());
    const api_base *(*get_base)(void) = NULL;
    void *symbol = dlsym(runtime->library, "OrtGetApiBase");
    if (symbol == NULL) {
        fail(reason, "the library does not export OrtGetApiBase");
        ort_close(runtime);
        return false;
    }
    memcpy(&get_base, &symbol, sizeof get_base);
    const api_base *base = get_base();
    snprintf(runtime->version, sizeof runtime->version, "%s", base->get_version());
    const any_function *table = base->get_api(ORT_API_VERSION);
    if (table == NULL) {
        snprintf(reason->text, sizeof reason->text, "ONNX Runtime %s has no API version %d (1.18 and later do)",
                 runtime->version, ORT_API_VERSION);
        ort_close(runtime);
        return false;
    }
    take_functions(runtime, table);
    if (make_environment(runtime, threads, spin, reason))
        return true;
    ort_close(runtime);
    return false;
}

void ort_close(ort_runtime *runtime)
{
    if (runtime->prepacked != NULL)
        runtime->call.release_prepacked(runtime->prepacked);
    if (runtime->memory != NULL)
        runtime->call.release_memory(runtime->memory);
    if (runtime->environment != NULL)
        runtime->call.release_environment(runtime->environment);
    /* The library stays mapped: its thread-local destructors may still run. */
    runtime->prepacked = NULL;
    runtime->memory = NULL;
    runtime->environment = NULL;
    runtime->library = NULL;
}
