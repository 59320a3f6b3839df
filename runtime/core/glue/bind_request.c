/* SPDX-License-Identifier: Apache-2.0 */
#include "bind_request.h"

int bind_request_read(const bind_request *self, int steps, size_t rows, size_t columns, size_t width, flow_request *out)
{
    const size_t cells = rows * columns;
    const size_t bytes[REQUEST_BUFFERS] = {cells * sizeof(float),
                                           (size_t)steps * width * sizeof(float),
                                           (size_t)steps * sizeof(flow_moment),
                                           cells * sizeof(float),
                                           rows * sizeof(float),
                                           sizeof(int32_t)};
    static const char *const names[REQUEST_BUFFERS] = {"noise", "bias_rows", "moments", "target", "weights", "signal"};
    const Py_buffer *buffers = self->buffers;
    for (int i = 0; i < REQUEST_BUFFERS; i++) {
        if (buffers[i].buf != NULL && (size_t)buffers[i].len != bytes[i]) {
            PyErr_Format(PyExc_ValueError, "%s has %zd bytes, must have %zu", names[i], buffers[i].len, bytes[i]);
            return -1;
        }
    }
    if ((buffers[TARGET].buf == NULL) != (buffers[WEIGHTS].buf == NULL)) {
        PyErr_SetString(PyExc_ValueError, "target and weights come together");
        return -1;
    }
    *out = (flow_request){steps, buffers[NOISE].buf, buffers[BIAS_ROWS].buf, buffers[MOMENTS].buf, buffers[TARGET].buf,
                          buffers[WEIGHTS].buf, buffers[SIGNAL].buf};
    return 0;
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
