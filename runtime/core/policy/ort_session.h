/* SPDX-License-Identifier: Apache-2.0 */
/* One graph in ONNX Runtime, and its buffers bound once. */
#pragma once

#include "ort_api.h"

enum { ORT_MAX_RANK = 8 };

/* A tensor in memory that belongs to the caller and outlives whatever uses it. */
typedef struct {
    const char *name;
    void *data;
    size_t bytes;
    int64_t shape[ORT_MAX_RANK];
    size_t rank;
    ort_type type;
} ort_tensor;

typedef struct {
    const void *model;
    size_t model_bytes;
    const char *folder;       /* where its external data lies: ONNX Runtime wants it to exist even when unread */
    const ort_tensor *shared; /* initialisers used where they lie and packed once for all sessions */
    size_t shared_count;
} ort_source;

typedef struct {
    ort_runtime *runtime;
    ort_raw_session *session;
    ort_value **shared;
    size_t shared_count;
    ort_reason reason; /* why it could not be made */
} ort_session;

/* False: `session->reason` says why and nothing is left behind. Allocates; never called in a loop. */
bool ort_session_create(ort_session *session, ort_runtime *runtime, const ort_source *source);
void ort_session_destroy(ort_session *session);

typedef struct {
    ort_session *session;
    ort_io *io;
    ort_reason reason; /* why the last call on this binding failed; one thread uses it at a time */
} ort_binding;

bool ort_binding_create(ort_binding *binding, ort_session *session);
bool ort_bind(ort_binding *binding, const ort_tensor *tensor, bool output);
void ort_binding_destroy(ort_binding *binding);

/* Executes the graph once on the bound buffers. */
bool ort_run(ort_binding *binding);
