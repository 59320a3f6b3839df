#include "ort_session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALL_OPTIMIZATIONS = 99, MAX_FILES = 16 };

static bool make_value(ort_runtime *runtime, const ort_tensor *tensor, ort_value **value)
{
    return ort_check(runtime, runtime->call.create_tensor(runtime->memory, tensor->data, tensor->bytes, tensor->shape,
                                                          tensor->rank, (int)tensor->type, value));
}

static bool share_initializers(ort_session *session, ort_options *options, const ort_source *source)
{
    ort_runtime *runtime = session->runtime;
    if (source->shared_count == 0)
        return true;
    session->shared = calloc(source->shared_count, sizeof *session->shared);
    if (session->shared == NULL) {
        snprintf(runtime->message, sizeof runtime->message, "out of memory for %zu initialisers", source->shared_count);
        return false;
    }
    for (size_t i = 0; i < source->shared_count; i++) {
        if (!make_value(runtime, &source->shared[i], &session->shared[i]))
            return false;
        session->shared_count = i + 1;
        if (!ort_check(runtime, runtime->call.add_initializer(options, source->shared[i].name, session->shared[i])))
            return false;
    }
    return true;
}

static bool give_files(ort_runtime *runtime, ort_options *options, const ort_source *source)
{
    const char *names[MAX_FILES];
    char *data[MAX_FILES];
    size_t bytes[MAX_FILES];
    if (source->file_count == 0)
        return true;
    if (source->file_count > MAX_FILES) {
        snprintf(runtime->message, sizeof runtime->message, "%zu external files, at most %d", source->file_count, MAX_FILES);
        return false;
    }
    for (size_t i = 0; i < source->file_count; i++) {
        names[i] = source->files[i].name;
        data[i] = source->files[i].data;
        bytes[i] = source->files[i].bytes;
    }
    return ort_check(runtime, runtime->call.add_files_in_memory(options, names, data, bytes, source->file_count));
}

bool ort_session_create(ort_session *session, ort_runtime *runtime, const ort_source *source)
{
    ort_options *options = NULL;
    memset(session, 0, sizeof *session);
    session->runtime = runtime;
    bool made = ort_check(runtime, runtime->call.create_options(&options))
        && ort_check(runtime, runtime->call.set_optimization(options, ALL_OPTIMIZATIONS))
        && ort_check(runtime, runtime->call.disable_own_threads(options))
        && (source->folder == NULL
            || ort_check(runtime, runtime->call.add_config(options, "session.model_external_initializers_file_folder_path",
                                                           source->folder)))
        && give_files(runtime, options, source)
        && share_initializers(session, options, source)
        && ort_check(runtime, runtime->call.create_session(runtime->environment, source->model, source->model_bytes,
                                                           options, runtime->prepacked, &session->session));
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
    binding->session = session;
    binding->io = NULL;
    return ort_check(session->runtime, session->runtime->call.create_io(session->session, &binding->io));
}

/* The binding keeps its own reference to the value, so ours is released at once. */
static bool bind(ort_binding *binding, const ort_tensor *tensor,
                 ort_status *(*call)(ort_io *, const char *, const ort_value *))
{
    ort_runtime *runtime = binding->session->runtime;
    ort_value *value = NULL;
    if (!make_value(runtime, tensor, &value))
        return false;
    bool bound = ort_check(runtime, call(binding->io, tensor->name, value));
    runtime->call.release_value(value);
    return bound;
}

bool ort_bind_input(ort_binding *binding, const ort_tensor *tensor)
{
    return bind(binding, tensor, binding->session->runtime->call.bind_input);
}

bool ort_bind_output(ort_binding *binding, const ort_tensor *tensor)
{
    return bind(binding, tensor, binding->session->runtime->call.bind_output);
}

void ort_binding_destroy(ort_binding *binding)
{
    if (binding->io != NULL)
        binding->session->runtime->call.release_io(binding->io);
    binding->io = NULL;
}

bool ort_run(ort_binding *binding)
{
    ort_runtime *runtime = binding->session->runtime;
    return ort_check(runtime, runtime->call.run_bound(binding->session->session, NULL, binding->io));
}
