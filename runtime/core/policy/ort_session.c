/* SPDX-License-Identifier: Apache-2.0 */
#include "ort_session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALL_OPTIMIZATIONS = 99 };

static bool make_value(const ort_runtime *runtime, const ort_tensor *tensor, ort_value **value, ort_reason *reason)
{
    return ort_check(runtime,
                     runtime->call.create_tensor(runtime->memory, tensor->data, tensor->bytes, tensor->shape,
                                                 tensor->rank, (int)tensor->type, value),
                     reason);
}

static bool share_initializers(ort_session *session, ort_options *options, const ort_source *source)
{
    ort_runtime *runtime = session->runtime;
    if (source->shared_count == 0)
        return true;
    session->shared = calloc(source->shared_count, sizeof *session->shared);
    if (session->shared == NULL) {
        snprintf(session->reason.text, sizeof session->reason.text, "out of memory for %zu initialisers",
                 source->shared_count);
        return false;
    }
    for (size_t i = 0; i < source->shared_count; i++) {
        if (!make_value(runtime, &source->shared[i], &session->shared[i], &session->reason))
            return false;
        session->shared_count = i + 1;
        if (!ort_check(runtime, runtime->call.add_initializer(options, source->shared[i].name, session->shared[i]),
                       &session->reason))
            return false;
    }
    return true;
}

/* Packed weights are shared between sessions through the container; kernels that cannot (8-bit ones) refuse it. */
static bool create(ort_session *session, const ort_options *options, const ort_source *source, ort_prepacked *packed)
{
    ort_runtime *runtime = session->runtime;
    return ort_check(runtime,
                     runtime->call.create_session(runtime->environment, source->model, source->model_bytes, options,
                                                  packed, &session->session),
                     &session->reason);
}

bool ort_session_create(ort_session *session, ort_runtime *runtime, const ort_source *source)
{
    ort_options *options = NULL;
    memset(session, 0, sizeof *session);
    session->runtime = runtime;
    ort_reason *reason = &session->reason;
    bool made = ort_check(runtime, runtime->call.create_options(&options), reason)
        && ort_check(runtime, runtime->call.set_optimization(options, ALL_OPTIMIZATIONS), reason)
        && ort_check(runtime, runtime->call.disable_own_threads(options), reason)
        && (source->folder == NULL
            || ort_check(runtime,
                         runtime->call.add_config(options, "session.model_external_initializers_file_folder_path",
                                                  source->folder),
                         reason))
        && share_initializers(session, options, source)
        && (create(session, options, source, runtime->prepacked) || create(session, options, source, NULL));
    if (options != NULL)
        runtime->call.release_options(options);
    if (!made)
        ort_session_destroy(session);
    return made;
}

void ort_session_destroy(ort_session *session)
{
    if (session->session != NULL)
        session->runtime->call.release_session(session->session);
    for (size_t i = 0; i < session->shared_count; i++)
        session->runtime->call.release_value(session->shared[i]);
    free(session->shared);
    session->session = NULL;
    session->shared = NULL;
    session->shared_count = 0;
}

bool ort_binding_create(ort_binding *binding, ort_session *session)
{
    const ort_runtime *runtime = session->runtime;
    binding->session = session;
    binding->io = NULL;
    return ort_check(runtime, runtime->call.create_io(session->session, &binding->io), &binding->reason);
}

/* The binding keeps its own reference to the value, so ours is released at once. */
bool ort_bind(ort_binding *binding, const ort_tensor *tensor, bool output)
{
    const ort_runtime *runtime = binding->session->runtime;
    ort_value *value = NULL;
    if (!make_value(runtime, tensor, &value, &binding->reason))
        return false;
    bool bound = ort_check(
        runtime, (output ? runtime->call.bind_output : runtime->call.bind_input)(binding->io, tensor->name, value),
        &binding->reason);
    runtime->call.release_value(value);
    return bound;
}

void ort_binding_destroy(ort_binding *binding)
{
    if (binding->io != NULL)
        binding->session->runtime->call.release_io(binding->io);
    binding->io = NULL;
}

bool ort_run(ort_binding *binding)
{
    const ort_runtime *runtime = binding->session->runtime;
    return ort_check(runtime, runtime->call.run_bound(binding->session->session, NULL, binding->io), &binding->reason);
}
