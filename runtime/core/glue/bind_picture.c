/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.scale_picture`: a camera picture to the network's pixels, without the interpreter. */
#include "module.h"
#include "picture.h"

enum {
    IMAGE, PIXELS, ROW, FIRST_ROWS, SECOND_ROWS, ROW_WEIGHTS, FIRST_COLUMNS, SECOND_COLUMNS, COLUMN_WEIGHTS, BUFFERS
};

/* Indices below `limit`, as many of each as weights. */
static int samples_of(const Py_buffer *first, const Py_buffer *second, const Py_buffer *weight, size_t limit,
                      picture_samples *out)
{
    const size_t count = (size_t)weight->len / sizeof(float);
    const int32_t *indices[2] = {first->buf, second->buf};
    if ((size_t)first->len != count * sizeof(int32_t) || first->len != second->len) {
        PyErr_SetString(PyExc_ValueError, "samples are two int32 and one float32 array of one length");
        return -1;
    }
    for (size_t i = 0; i < 2 * count; i++) {
        if ((uint32_t)indices[i % 2][i / 2] >= limit) {
            PyErr_Format(PyExc_ValueError, "a sample is %d, the picture has %zu", (int)indices[i % 2][i / 2], limit);
            return -1;
        }
    }
    *out = (picture_samples){first->buf, second->buf, weight->buf, count};
    return 0;
}

static int plan_of(const Py_buffer *buffers, picture_plan *plan)
{
    const Py_buffer *image = &buffers[IMAGE], *pixels = &buffers[PIXELS];
    if (image->ndim != 3 || image->itemsize != 1 || image->shape[2] != PICTURE_CHANNELS || pixels->ndim != 4
        || pixels->itemsize != sizeof(float) || pixels->shape[0] != 1 || pixels->shape[1] != PICTURE_CHANNELS) {
        PyErr_SetString(PyExc_ValueError, "the picture is uint8 [height, width, 3], the pixels float32 [1, 3, h, w]");
        return -1;
    }
    plan->source_height = (size_t)image->shape[0];
    plan->source_width = (size_t)image->shape[1];
    plan->target_height = (size_t)pixels->shape[2];
    plan->target_width = (size_t)pixels->shape[3];
    if (samples_of(&buffers[FIRST_ROWS], &buffers[SECOND_ROWS], &buffers[ROW_WEIGHTS], plan->source_height,
                   &plan->rows) < 0 ||
        samples_of(&buffers[FIRST_COLUMNS], &buffers[SECOND_COLUMNS], &buffers[COLUMN_WEIGHTS], plan->source_width,
                   &plan->columns) < 0)
        return -1;
    if (plan->rows.count > plan->target_height || plan->columns.count > plan->target_width
        || (size_t)buffers[ROW].len != plan->source_width * PICTURE_CHANNELS * sizeof(float)) {
        PyErr_SetString(PyExc_ValueError, "more samples than pixels, or the scratch is not one row of the picture");
        return -1;
    }
    return 0;
}

PyObject *call_scale_picture(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffers[BUFFERS] = {{0}};
    PyObject *made = NULL;
    picture_plan plan;
    int got = 0;
    if (PyTuple_GET_SIZE(args) != BUFFERS)
        return PyErr_Format(PyExc_TypeError, "%d arrays are needed", BUFFERS);
    for (; got < BUFFERS; got++) {
        int flags = PyBUF_C_CONTIGUOUS | (got == PIXELS || got == ROW ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(args, got), &buffers[got], flags) < 0)
            break;
    }
    if (got == BUFFERS && plan_of(buffers, &plan) == 0) {
        UNLOCKED(picture_scale(&plan, buffers[IMAGE].buf, buffers[ROW].buf, buffers[PIXELS].buf));
        made = Py_NewRef(Py_None);
    }
    while (got > 0)
        PyBuffer_Release(&buffers[--got]);
    return made;
}
