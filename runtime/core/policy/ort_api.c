/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "ort_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum slot {
    GET_ERROR_MESSAGE = 2,
    CREATE_SESSION_OPTIONS = 10,
    SET_SESSION_GRAPH_OPTIMIZATION_LEVEL = 23,
    CREATE_TENSOR_WITH_DATA_AS_ORT_VALUE = 49,
    CREATE_CPU_MEMORY_INFO = 69,
    RELEASE_ENV = 92,
    RELEASE_STATUS = 93,
    RELEASE_MEMORY_INFO = 94,
    RELEASE_SESSION = 95,
    RELEASE_VALUE = 96,
    RELEASE_SESSION_OPTIONS = 100,
    CREATE_ENV_WITH_GLOBAL_THREAD_POOLS = 119,
    DISABLE_PER_SESSION_THREADS = 120,
    CREATE_THREADING_OPTIONS = 121,
    RELEASE_THREADING_OPTIONS = 122,
    ADD_SESSION_CONFIG_ENTRY = 130,
    RUN_WITH_BINDING = 133,
    CREATE_IO_BINDING = 134,
    RELEASE_IO_BINDING = 135,
    BIND_INPUT = 136,
    BIND_OUTPUT = 137,
    SET_GLOBAL_INTRA_OP_NUM_THREADS = 147,
    SET_GLOBAL_SPIN_CONTROL = 149,
    ADD_INITIALIZER = 150,
    CREATE_PREPACKED_WEIGHTS_CONTAINER = 166,
    RELEASE_PREPACKED_WEIGHTS_CONTAINER = 167,
    CREATE_SESSION_FROM_ARRAY_WITH_PREPACKED_WEIGHTS_CONTAINER = 169,
};

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
#define TAKE(member, slot) memcpy(&runtime->call.member, &table[slot], sizeof runtime->call.member)

static void take_functions(ort_runtime *runtime, const any_function *table)
{
    TAKE(message, GET_ERROR_MESSAGE);
    TAKE(release_status, RELEASE_STATUS);
    TAKE(create_threading, CREATE_THREADING_OPTIONS);
    TAKE(release_threading, RELEASE_THREADING_OPTIONS);
    TAKE(set_threads, SET_GLOBAL_INTRA_OP_NUM_THREADS);
    TAKE(set_spin, SET_GLOBAL_SPIN_CONTROL);
    TAKE(create_environment, CREATE_ENV_WITH_GLOBAL_THREAD_POOLS);
    TAKE(release_environment, RELEASE_ENV);
    TAKE(create_options, CREATE_SESSION_OPTIONS);
    TAKE(release_options, RELEASE_SESSION_OPTIONS);
    TAKE(set_optimization, SET_SESSION_GRAPH_OPTIMIZATION_LEVEL);
    TAKE(disable_own_threads, DISABLE_PER_SESSION_THREADS);
    TAKE(add_config, ADD_SESSION_CONFIG_ENTRY);
    TAKE(add_initializer, ADD_INITIALIZER);
    TAKE(create_prepacked, CREATE_PREPACKED_WEIGHTS_CONTAINER);
    TAKE(release_prepacked, RELEASE_PREPACKED_WEIGHTS_CONTAINER);
    TAKE(create_session, CREATE_SESSION_FROM_ARRAY_WITH_PREPACKED_WEIGHTS_CONTAINER);
    TAKE(release_session, RELEASE_SESSION);
    TAKE(create_memory, CREATE_CPU_MEMORY_INFO);
    TAKE(release_memory, RELEASE_MEMORY_INFO);
    TAKE(create_tensor, CREATE_TENSOR_WITH_DATA_AS_ORT_VALUE);
    TAKE(release_value, RELEASE_VALUE);
    TAKE(create_io, CREATE_IO_BINDING);
    TAKE(release_io, RELEASE_IO_BINDING);
    TAKE(bind_input, BIND_INPUT);
    TAKE(bind_output, BIND_OUTPUT);
    TAKE(run_bound, RUN_WITH_BINDING);
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
    if (!make_environment(runtime, threads, spin, reason)) {
        ort_close(runtime);
        return false;
    }
    return true;
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
