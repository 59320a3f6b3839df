/* SPDX-License-Identifier: Apache-2.0 */
/* Flow: the state token and the Euler steps in one call without the interpreter. */
#include "bind_request.h"

typedef struct {
    PyObject_HEAD
    flow loop;
    PyObject *graphs[4]; /* prefix (or NULL), state, step 0, step 1 */
    PyObject *kept;      /* list of memoryviews */
} Flow;

static float *floats_of(Flow *self, PyObject *array, const char *name, Py_ssize_t *count)
{
    const Py_buffer *buffer = kept_floats(self->kept, array, name, true);
    if (buffer == NULL)
        return NULL;
    *count = buffer->len / (Py_ssize_t)sizeof(float);
    return buffer->buf;
}

/* One pair (to [heads, rows, width], from [heads, 1, width]): `from` becomes row `place` of every head. */
static int add_copy(Flow *self, PyObject *pair, Py_ssize_t place)
{
    PyObject *to, *from;
    if (self->loop.copy_count == FLOW_MAX_COPIES) {
        PyErr_Format(PyExc_ValueError, "more than %d state rows", FLOW_MAX_COPIES);
        return -1;
    }
    if (!PyArg_ParseTuple(pair, "OO", &to, &from))
        return -1;
    const Py_buffer *t = kept_floats(self->kept, to, "K/V tensor", true);
    const Py_buffer *f = t == NULL ? NULL : kept_floats(self->kept, from, "state row", false);
    if (f == NULL)
        return -1;
    if (t->ndim != 3 || f->ndim != 3 || f->shape[1] != 1 || place < 0 || t->shape[1] <= place ||
        t->shape[0] != f->shape[0] || t->shape[2] != f->shape[2]) {
        PyErr_SetString(PyExc_ValueError, "a state row must be [heads, 1, width] for a place in [heads, rows, width]");
        return -1;
    }
    size_t bytes = (size_t)t->shape[2] * sizeof(float), stride = (size_t)t->shape[1] * bytes;
    self->loop.copies[self->loop.copy_count++] =
        (flow_copy){(char *)t->buf + (size_t)place * bytes, f->buf, (size_t)t->shape[0], bytes, stride};
    return 0;
}

static int add_copies(Flow *self, PyObject *rows, Py_ssize_t place)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); i++)
        if (add_copy(self, PyList_GET_ITEM(rows, i), place) < 0)
            return -1;
    return 0;
}

/* Both x buffers: one shape, [1, rows, columns]. */
static int add_x(Flow *self, PyObject *const arrays[2])
{
    flow *loop = &self->loop;
    for (int i = 0; i < 2; i++) {
        const Py_buffer *buffer = kept_floats(self->kept, arrays[i], "x", true);
        if (buffer == NULL)
            return -1;
        if (buffer->ndim != 3 || buffer->shape[0] != 1 ||
            (i == 1 && (loop->rows != (size_t)buffer->shape[1] || loop->columns != (size_t)buffer->shape[2]))) {
            PyErr_SetString(PyExc_ValueError, "x and x_next must be of one shape [1, rows, columns]");
            return -1;
        }
        loop->x[i] = buffer->buf;
        loop->rows = (size_t)buffer->shape[1];
        loop->columns = (size_t)buffer->shape[2];
    }
    return 0;
}

static int add_graphs(Flow *self)
{
    flow_graph *graphs[4] = {&self->loop.prefix, &self->loop.state, &self->loop.step[0], &self->loop.step[1]};
    for (int i = 0; i < 4; i++) {
        if (i == 0 && self->graphs[i] == Py_None)
            continue;
        if (bind_ort_graph(self->graphs[i], graphs[i]) < 0)
            return -1;
    }
    return 0;
}

/* What a step reads besides x: time_bias [step rows, width], dt of so many rows, and the tie, which is there or not. */
static int add_step(Flow *self, PyObject *bias, PyObject *dt, PyObject *target, PyObject *weights)
{
    flow *loop = &self->loop;
    Py_ssize_t cells = 0, rows = 0, ties[2] = {0, 0};
    bool tie = target != Py_None;
    if ((loop->time_bias = floats_of(self, bias, "time_bias", &cells)) == NULL
        || (loop->dt = floats_of(self, dt, "dt", &rows)) == NULL
        || (tie && (loop->target = floats_of(self, target, "target", &ties[0])) == NULL)
        || (tie && (loop->weights = floats_of(self, weights, "weights", &ties[1])) == NULL))
        return -1;
    loop->step_rows = (size_t)rows;
    if (rows < 1 || loop->step_rows != (tie ? loop->rows : 1) || cells < rows || cells % rows != 0) {
        PyErr_SetString(PyExc_ValueError, "time_bias and dt must have a row for each of the chunk, one without a tie");
        return -1;
    }
    if (tie && ((size_t)ties[0] != loop->rows * loop->columns || (size_t)ties[1] != loop->rows)) {
        PyErr_SetString(PyExc_ValueError, "target must be like x, and weights one float a row of it");
        return -1;
    }
    loop->width = (size_t)(cells / rows);
    return 0;
}

static PyObject *Flow_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"prefix", "state",  "step_even", "step_odd", "state_rows", "state_place",
                            "x",      "x_next", "time_bias", "dt",       "target",     "weights", NULL};
    PyObject *graphs[4], *rows, *x[2], *bias, *dt, *target = Py_None, *weights = Py_None;
    Py_ssize_t place;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOO!nOOOO|OO", names, &graphs[0], &graphs[1], &graphs[2],
                                     &graphs[3], &PyList_Type, &rows, &place, &x[0], &x[1], &bias, &dt, &target,
                                     &weights))
        return NULL;
    Flow *self = (Flow *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    for (int i = 0; i < 4; i++)
        self->graphs[i] = Py_NewRef(graphs[i]);
    self->kept = PyList_New(0);
    if (self->kept != NULL && add_graphs(self) == 0 && add_copies(self, rows, place) == 0 && add_x(self, x) == 0 &&
        add_step(self, bias, dt, target, weights) == 0)
        return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return NULL;
}

static void Flow_dealloc(PyObject *object)
{
    Flow *self = (Flow *)object;
    for (int i = 0; i < 4; i++)
        Py_XDECREF(self->graphs[i]);
    Py_XDECREF(self->kept);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *raise(const Flow *self)
{
    PyErr_SetString(PyExc_RuntimeError, bind_ort_message(self->loop.failed));
    return NULL;
}

static PyObject *Flow_encode(PyObject *object, PyObject *refresh)
{
    flow *loop = &((Flow *)object)->loop;
    int prefix = PyObject_IsTrue(refresh);
    int64_t prefix_ns, state_ns;
    flow_outcome outcome;
    if (prefix < 0)
        return NULL;
    if (prefix && loop->prefix.run == NULL) {
        PyErr_SetString(PyExc_ValueError, "this loop was made without a prefix graph");
        return NULL;
    }
    UNLOCKED(outcome = flow_encode(loop, prefix, &prefix_ns, &state_ns));
    return outcome == FLOW_FAILED ? raise((Flow *)object)
                                  : Py_BuildValue("(LL)", (long long)prefix_ns, (long long)state_ns);
}

static PyObject *Flow_denoise(PyObject *object, PyObject *args, PyObject *keywords)
{
    flow *loop = &((Flow *)object)->loop;
    bind_request given;
    flow_result result;
    if (bind_request_read(&given, args, keywords, NULL, loop->rows, loop->columns, loop->width) < 0)
        return NULL;
    UNLOCKED(flow_denoise(loop, &given.request, &result));
    bind_request_release(&given);
    return result.outcome == FLOW_FAILED ? raise((Flow *)object) : bind_request_result(&result);
}

static PyMethodDef methods[] = {
    {"encode", Flow_encode, METH_O, NULL},
    {"denoise", (PyCFunction)(void (*)(void))Flow_denoise, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL},
};
PyTypeObject Flow_type = {
    TYPE(Flow),
    .tp_new = Flow_new,
    .tp_dealloc = Flow_dealloc,
    .tp_methods = methods,
};
