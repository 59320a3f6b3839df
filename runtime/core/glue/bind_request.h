/* SPDX-License-Identifier: Apache-2.0 */
/* What a call of `denoise` takes and gives, for bind_flow.c and bind_cuda.c. */
#ifndef VLA_BIND_REQUEST_H
#define VLA_BIND_REQUEST_H

#include "flow.h"
#include "module.h"

enum { NOISE, BIAS_ROWS, MOMENTS, TARGET, WEIGHTS, SIGNAL, REQUEST_BUFFERS };

/* The buffers of one call; those not given have no memory. All are released by `bind_request_release`. */
typedef struct {
    Py_buffer buffers[REQUEST_BUFFERS];
} bind_request;

/* The request for a loop of that shape; width: floats a step of `bias_rows`. Returns -1 with ValueError set for a
 * buffer of another size, and for only one of target and weights. */
int bind_request_read(const bind_request *self, int steps, size_t rows, size_t columns, size_t width,
                      flow_request *out);

void bind_request_release(bind_request *self);

/* (abandoned, nanoseconds of each step) of a loop that did not fail. */
PyObject *bind_request_result(const flow_result *result);

#endif
