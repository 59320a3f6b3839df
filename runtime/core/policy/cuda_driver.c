/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static bool told(cuda_driver *driver, const char *what, const char *why)
{
    snprintf(driver->message, sizeof driver->message, "%s failed: %s", what, why);
    return false;
}

bool cuda_ok(cuda_driver *driver, cuda_result result, const char *what)
{
    if (result == 0)
        return true;
    const char *name = NULL;
    char number[40];
    snprintf(number, sizeof number, "CUDA error %d", result);
    if (driver->call.error_name == NULL || driver->call.error_name(result, &name) != 0 || name == NULL)
        name = number;
    return told(driver, what, name);
}

/* Object pointers become function pointers through memory: POSIX allows it, C11 has no cast for it. */
static bool bind_symbols(cuda_driver *driver)
{
    const struct {
        const char *name;
        void *slot;
    } symbols[] = {
#define SYMBOL(symbol, name, arguments) {#symbol, &driver->call.name},
        CUDA_CALLS(SYMBOL)
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *found = dlsym(driver->library, symbols[i].name);
        if (found == NULL)
            return told(driver, symbols[i].name, "the driver library does not have it");
        memcpy(symbols[i].slot, &found, sizeof found);
    }
    return true;
}

static bool start(cuda_driver *driver, int ordinal)
{
    int count = 0;
    if (!cuda_ok(driver, driver->call.init(0), "cuInit")
        || !cuda_ok(driver, driver->call.version(&driver->version), "cuDriverGetVersion")
        || !cuda_ok(driver, driver->call.device_count(&count), "cuDeviceGetCount"))
        return false;
    if (ordinal < 0 || ordinal >= count) {
        char why[60];
        snprintf(why, sizeof why, "device %d was asked for, there are %d", ordinal, count);
        return told(driver, "device count", why);
    }
    return cuda_ok(driver, driver->call.device_get(&driver->device, ordinal), "cuDeviceGet")
        && cuda_ok(driver, driver->call.context_retain(&driver->context, driver->device), "cuDevicePrimaryCtxRetain");
}

bool cuda_open(cuda_driver *driver, const char *library, int ordinal)
{
    memset(driver, 0, sizeof *driver);
    driver->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (driver->library == NULL)
        return told(driver, "dlopen", dlerror());
    if (bind_symbols(driver) && start(driver, ordinal))
        return true;
    dlclose(driver->library);
    driver->library = NULL;
    return false;
}

void cuda_close(cuda_driver *driver)
{
    driver->call.context_release(driver->device);
    dlclose(driver->library);
    driver->library = NULL;
}

bool cuda_enter(cuda_driver *driver)
{
    return cuda_ok(driver, driver->call.context_set(driver->context), "cuCtxSetCurrent");
}

bool cuda_capture_begin(cuda_driver *driver, cuda_stream stream)
{
    if (stream == NULL)
        return told(driver, "cuStreamBeginCapture", "the default stream cannot be captured");
    return cuda_enter(driver)
        && cuda_ok(driver, driver->call.begin_capture(stream, CUDA_CAPTURE_THREAD_LOCAL), "cuStreamBeginCapture");
}

bool cuda_capture_end(cuda_driver *driver, cuda_stream stream, cuda_exec *exec)
{
    cuda_graph graph = NULL;
    *exec = NULL;
    if (!cuda_ok(driver, driver->call.end_capture(stream, &graph), "cuStreamEndCapture"))
        return false;
    if (graph == NULL)
        return told(driver, "cuStreamEndCapture", "the capture was invalidated");
    bool made = cuda_ok(driver, driver->call.instantiate(exec, graph, 0), "cuGraphInstantiate");
    /* The executable graph does not need the template; the first failure keeps its message. */
    cuda_result destroyed = driver->call.graph_destroy(graph);
    if (made)
        made = cuda_ok(driver, destroyed, "cuGraphDestroy")
            && cuda_ok(driver, driver->call.upload(*exec, stream), "cuGraphUpload")
            && cuda_ok(driver, driver->call.stream_sync(stream), "cuStreamSynchronize");
    if (!made && *exec != NULL) {
        driver->call.exec_destroy(*exec);
        *exec = NULL;
    }
    return made;
}

void cuda_capture_cancel(cuda_driver *driver, cuda_stream stream)
{
    cuda_graph graph = NULL;
    if (driver->call.end_capture(stream, &graph) == 0 && graph != NULL)
        driver->call.graph_destroy(graph);
}
