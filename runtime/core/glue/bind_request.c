/* SPDX-License-Identifier: Apache-2.0 */
#include "bind_request.h"

#include <string.h>

int bind_side(int side)
{
    if (side == 0 || side == 1)
        return 0;
    PyErr_Format(PyExc_ValueError, "side is %d, must be 0 or 1", side);
    return -1;
}

static int check_sizes(const Py_buffer *buffers, size_t steps, size_t rows, size_t columns, size_t width)
{
    static const char *const names[REQUEST_BUFFERS] = {"noise", "bias_rows", "moments", "target", "weights", "signal"};
    const size_t bytes[REQUEST_BUFFERS] = {
        rows * columns * sizeof(float), steps * width * sizeof(float), steps * sizeof(flow_moment),
        rows * columns * sizeof(float), rows * sizeof(float),          sizeof(int32_t)};
    for (int i = 0; i < REQUEST_BUFFERS; i++) {
        if (buffers[i].buf != NULL && (size_t)buffers[i].len != bytes[i]) {
            PyErr_Format(PyExc_ValueError, "%s has %zd bytes, must have %zu", names[i], buffers[i].len, bytes[i]);
            return -1;
        }
    }
    if ((buffers[TARGET].buf == NULL) == (buffers[WEIGHTS].buf == NULL))
        return 0;
    PyErr_SetString(PyExc_ValueError, "target and weights come together");
    return -1;
}

int bind_request_read(bind_request *self, PyObject *args, PyObject *keywords, int *side, size_t rows, size_t columns,
                      size_t width)
{
    static char *names[] = {"side", "noise", "bias_rows", "moments", "steps", "target", "weights", "signal", NULL};
    Py_buffer *b = self->buffers;
    int steps;
    memset(self, 0, sizeof *self);
    const int got = side != NULL
                        ? PyArg_ParseTupleAndKeywords(args, keywords, "iy*y*y*i|z*z*z*", names, side, &b[NOISE],
                                                      &b[BIAS_ROWS], &b[MOMENTS], &steps, &b[TARGET], &b[WEIGHTS],
                                                      &b[SIGNAL])
                        : PyArg_ParseTupleAndKeywords(args, keywords, "y*y*y*i|z*z*z*", names + 1, &b[NOISE],
                                                      &b[BIAS_ROWS], &b[MOMENTS], &steps, &b[TARGET], &b[WEIGHTS],
                                                      &b[SIGNAL]);
    if (!got)
        return -1;
    if (steps < 1 || steps > FLOW_MAX_STEPS)
        PyErr_Format(PyExc_ValueError, "steps is %d, must be 1 to %d", steps, FLOW_MAX_STEPS);
    else if ((side == NULL || bind_side(*side) == 0) && check_sizes(b, (size_t)steps, rows, columns, width) == 0)
        self->request = (flow_request){steps, b[NOISE].buf, b[BIAS_ROWS].buf, b[MOMENTS].buf, b[TARGET].buf,
                                       b[WEIGHTS].buf, b[SIGNAL].buf};
    if (!PyErr_Occurred())
        return 0;
    bind_request_release(self);
    return -1;
}

void bind_request_release(bind_request *self)
{
    for (int i = 0; i < REQUEST_BUFFERS; i++)
        if (self->buffers[i].buf != NULL)
            PyBuffer_Release(&self->buffers[i]);
}

PyObject *bind_request_result(const flow_result *result)
{
    PyObject *steps = PyTuple_New(result->steps);
    if (steps == NULL)
        return NULL;
    for (int k = 0; k < result->steps; k++)
        PyTuple_SET_ITEM(steps, k, PyLong_FromLongLong(result->step_ns[k]));
    return Py_BuildValue("(ON)", result->outcome == FLOW_ABANDONED ? Py_True : Py_False, steps);
}
