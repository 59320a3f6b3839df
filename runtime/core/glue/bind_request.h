/* SPDX-License-Identifier: Apache-2.0 */
/* The graphs that a loop runs, and what a call of its `denoise` takes and gives: for bind_ort.c, bind_flow.c and
 * bind_cuda.c. */
#pragma once

#include "flow.h"
#include "module.h"

/* The graph of an OrtBinding, to be run without the interpreter; the object must
 * stay alive. Returns -1 with TypeError set for another object. */
int bind_ort_graph(PyObject *binding, flow_graph *graph);
/* Why the last run of a graph made by bind_ort_graph failed. */
const char *bind_ort_message(const flow_graph *graph);

enum { NOISE, BIAS_ROWS, MOMENTS, TARGET, WEIGHTS, SIGNAL, REQUEST_BUFFERS };

/* The buffers of one call; those not given have no memory. All are released by `bind_request_release`. */
typedef struct {
    Py_buffer buffers[REQUEST_BUFFERS];
    flow_request request;
} bind_request;

/* The arguments for a loop of that shape, behind the side where there is one (side NULL: there is none); width: floats
 * a step of `bias_rows`. Returns -1 with an error set, ValueError for a buffer of another size, for only one of target
 * and weights, and for another side than 0 or 1; nothing is left to release then. */
int bind_request_read(bind_request *self, PyObject *args, PyObject *keywords, int *side, size_t rows, size_t columns,
                      size_t width);
int bind_side(int side);

void bind_request_release(bind_request *self);

/* (abandoned, nanoseconds of each step) of a loop that did not fail. */
PyObject *bind_request_result(const flow_result *result);
