/* SPDX-License-Identifier: Apache-2.0 */
/* ONNX Runtime through its C function table, without its headers.
 *
 * The shared library of the onnxruntime wheel exports OrtGetApiBase. Its table
 * is append-only: a slot keeps its meaning in every later version, so the few
 * functions used here are taken by slot number (source: the order of
 * struct OrtApi, API version 18; ONNX Runtime 1.18 and later have it). Whoever
 * opens the library runs a self-test graph before trusting it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ORT_API_VERSION = 18, ORT_MESSAGE = 512 };

/* ONNX element types (onnx.TensorProto.DataType). */
typedef enum {
    ORT_FLOAT32 = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_INT64 = 7, ORT_BOOL = 9, ORT_FLOAT16 = 10
} ort_type;

typedef struct ort_status ort_status; /* NULL is success */
typedef struct ort_environment ort_environment;
typedef struct ort_threading ort_threading;
typedef struct ort_options ort_options;
typedef struct ort_raw_session ort_raw_session;
typedef struct ort_memory ort_memory;
typedef struct ort_value ort_value;
typedef struct ort_io ort_io;
typedef struct ort_prepacked ort_prepacked;

/* Why the last call failed. Every session and every binding has its own, because they are used from several threads. */
typedef struct {
    char text[ORT_MESSAGE];
} ort_reason;

/* X(slot in the table, result, name, arguments) */
#define ORT_FUNCTIONS(X)                                                                                               \
    X(2, const char *, message, (const ort_status *))                                                                  \
    X(93, void, release_status, (ort_status *))                                                                        \
    X(121, ort_status *, create_threading, (ort_threading **))                                                         \
    X(122, void, release_threading, (ort_threading *))                                                                 \
    X(147, ort_status *, set_threads, (ort_threading *, int))                                                          \
    X(149, ort_status *, set_spin, (ort_threading *, int))                                                             \
    X(119, ort_status *, create_environment, (int, const char *, const ort_threading *, ort_environment **))           \
    X(92, void, release_environment, (ort_environment *))                                                              \
    X(10, ort_status *, create_options, (ort_options **))                                                              \
    X(100, void, release_options, (ort_options *))                                                                     \
    X(23, ort_status *, set_optimization, (ort_options *, int))                                                        \
    X(120, ort_status *, disable_own_threads, (ort_options *))                                                         \
    X(130, ort_status *, add_config, (ort_options *, const char *, const char *))                                      \
    X(150, ort_status *, add_initializer, (ort_options *, const char *, const ort_value *))                            \
    X(166, ort_status *, create_prepacked, (ort_prepacked **))                                                         \
    X(167, void, release_prepacked, (ort_prepacked *))                                                                 \
    X(169, ort_status *, create_session,                                                                               \
      (const ort_environment *, const void *, size_t, const ort_options *, ort_prepacked *, ort_raw_session **))       \
    X(95, void, release_session, (ort_raw_session *))                                                                  \
    X(69, ort_status *, create_memory, (int, int, ort_memory **))                                                      \
    X(94, void, release_memory, (ort_memory *))                                                                        \
    X(49, ort_status *, create_tensor,                                                                                 \
      (const ort_memory *, void *, size_t, const int64_t *, size_t, int, ort_value **))                                \
    X(96, void, release_value, (ort_value *))                                                                          \
    X(134, ort_status *, create_io, (ort_raw_session *, ort_io **))                                                    \
    X(135, void, release_io, (ort_io *))                                                                               \
    X(136, ort_status *, bind_input, (ort_io *, const char *, const ort_value *))                                      \
    X(137, ort_status *, bind_output, (ort_io *, const char *, const ort_value *))                                     \
    X(133, ort_status *, run_bound, (ort_raw_session *, const void *, const ort_io *))

#define ORT_MEMBER(slot, result, name, arguments) result(*name) arguments;
typedef struct {
    ORT_FUNCTIONS(ORT_MEMBER)
} ort_functions;

/* One library with one environment: one thread pool for all its sessions, and
 * one container so that sessions share the packed form of weights they share. */
typedef struct {
    void *library;
    ort_functions call;
    ort_environment *environment;
    ort_memory *memory;
    ort_prepacked *prepacked;
    char version[32];
} ort_runtime;

/* Opens the library at `path`. threads: 0 lets ONNX Runtime choose; spin: workers
 * wait busily between runs. False: `reason` says why, nothing is left open. */
bool ort_open(ort_runtime *runtime, const char *path, int threads, bool spin, ort_reason *reason);
void ort_close(ort_runtime *runtime);

/* True when `status` is success; else copies its message, releases it and returns false. */
bool ort_check(const ort_runtime *runtime, ort_status *status, ort_reason *reason);
