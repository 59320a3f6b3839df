/* SPDX-License-Identifier: Apache-2.0 */
/* Flow: the state token and the Euler steps in one call without the interpreter. */
#include "bind_ort.h"
#include "bind_request.h"

typedef struct {
    PyObject_HEAD
    flow loop;
    PyObject *graphs[4]; /* prefix (or NULL), state, step 0, step 1 */
    PyObject *kept;      /* list of memoryviews */
} flow_object;

static PyObject *view_of(flow_object *self, PyObject *array, const char *what)
{
    PyObject *view = PyMemoryView_FromObject(array);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (!PyBuffer_IsContiguous(buffer, 'C') || buffer->format == NULL || buffer->format[0] != 'f') {
        PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous float32 array", what);
        Py_DECREF(view);
        return NULL;
    }
    int kept = PyList_Append(self->kept, view);
    Py_DECREF(view);
    return kept < 0 ? NULL : view;
}

static float *floats_of(flow_object *self, PyObject *array, const char *what, Py_ssize_t *count)
{
    PyObject *view = view_of(self, array, what);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (buffer->readonly) {
        PyErr_Format(PyExc_ValueError, "%s must be writable", what);
        return NULL;
    }
    *count = buffer->len / (Py_ssize_t)sizeof(float);
    return buffer->buf;
}

/* One pair (to [heads, rows, width], from [heads, 1, width]): `from` becomes row `place` of every head. */
static int add_copy(flow_object *self, PyObject *pair, Py_ssize_t place)
{
    PyObject *to, *from;
    if (self->loop.copy_count == FLOW_MAX_COPIES) {
        PyErr_Format(PyExc_ValueError, "more than %d state rows", FLOW_MAX_COPIES);
        return -1;
    }
    if (!PyArg_ParseTuple(pair, "OO", &to, &from))
        return -1;
    PyObject *to_view = view_of(self, to, "K/V tensor");
    PyObject *from_view = to_view == NULL ? NULL : view_of(self, from, "state row");
    if (from_view == NULL)
        return -1;
    const Py_buffer *t = PyMemoryView_GET_BUFFER(to_view), *f = PyMemoryView_GET_BUFFER(from_view);
    if (t->ndim != 3 || f->ndim != 3 || t->readonly || f->shape[1] != 1 || place < 0 || t->shape[1] <= place ||
        t->shape[0] != f->shape[0] || t->shape[2] != f->shape[2]) {
        PyErr_SetString(PyExc_ValueError,
                        "a state row must be [heads, 1, width] for its place in a writable [heads, rows, width]");
        return -1;
    }
    size_t bytes = (size_t)t->shape[2] * sizeof(float), stride = (size_t)t->shape[1] * bytes;
    self->loop.copies[self->loop.copy_count++] =
        (flow_copy){(char *)t->buf + (size_t)place * bytes, f->buf, (size_t)t->shape[0], bytes, stride};
    return 0;
}

static int add_copies(flow_object *self, PyObject *rows, Py_ssize_t place)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); i++)
        if (add_copy(self, PyList_GET_ITEM(rows, i), place) < 0)
            return -1;
    return 0;
}

/* Both x buffers: one shape, [1, rows, columns]. */
static int add_x(flow_object *self, PyObject *x, PyObject *x_next)
{
    PyObject *arrays[2] = {x, x_next};
    for (int i = 0; i < 2; i++) {
        PyObject *view = view_of(self, arrays[i], "x");
        if (view == NULL)
            return -1;
        const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
        if (buffer->readonly || buffer->ndim != 3 || buffer->shape[0] != 1
            || (i == 1 && self->loop.rows != (size_t)buffer->shape[1])
            || (i == 1 && self->loop.columns != (size_t)buffer->shape[2])) {
            PyErr_SetString(PyExc_ValueError, "x and x_next must be writable and of one shape [1, rows, columns]");
            return -1;
        }
        self->loop.x[i] = buffer->buf;
        self->loop.rows = (size_t)buffer->shape[1];
        self->loop.columns = (size_t)buffer->shape[2];
    }
    return 0;
}

static int add_graphs(flow_object *self)
{
    flow_graph *graphs[4] = {&self->loop.prefix, &self->loop.state, &self->loop.step[0], &self->loop.step[1]};
    for (int i = 0; i < 4; i++) {
        if (self->graphs[i] != NULL && bind_ort_graph(self->graphs[i], graphs[i]) < 0)
            return -1;
    }
    return 0;
}

/* What a step reads besides x: time_bias [step rows, width], dt of so many rows, and the tie, which is there or not. */
static int add_step(flow_object *self, PyObject *bias, PyObject *dt, PyObject *target, PyObject *weights)
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

static PyObject *flow_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"prefix", "state",  "step_even", "step_odd", "state_rows", "state_place",
                            "x",      "x_next", "time_bias", "dt",       "target",     "weights", NULL};
    PyObject *prefix, *state, *even, *odd, *rows, *x, *x_next, *bias, *dt, *target = Py_None, *weights = Py_None;
    Py_ssize_t place;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOO!nOOOO|OO", names, &prefix, &state, &even, &odd,
                                     &PyList_Type, &rows, &place, &x, &x_next, &bias, &dt, &target, &weights))
        return NULL;
    flow_object *self = (flow_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->graphs[0] = prefix == Py_None ? NULL : prefix;
    self->graphs[1] = state;
    self->graphs[2] = even;
    self->graphs[3] = odd;
    for (int i = 0; i < 4; i++)
        Py_XINCREF(self->graphs[i]);
    self->kept = PyList_New(0);
    if (add_graphs(self) < 0 || self->kept == NULL || add_copies(self, rows, place) < 0 || add_x(self, x, x_next) < 0
        || add_step(self, bias, dt, target, weights) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void flow_dealloc(flow_object *self)
{
    for (int i = 0; i < 4; i++)
        Py_XDECREF(self->graphs[i]);
    Py_XDECREF(self->kept);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *failed(const flow_object *self)
{
    PyErr_SetString(PyExc_RuntimeError, bind_ort_message(self->loop.failed));
    return NULL;
}

static PyObject *flow_call_encode(flow_object *self, PyObject *refresh)
{
    int prefix = PyObject_IsTrue(refresh);
    int64_t prefix_ns, state_ns;
    flow_outcome outcome;
    if (prefix < 0)
        return NULL;
    if (prefix && self->loop.prefix.run == NULL) {
        PyErr_SetString(PyExc_ValueError, "this loop was made without a prefix graph");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    outcome = flow_encode(&self->loop, prefix, &prefix_ns, &state_ns);
    Py_END_ALLOW_THREADS
    return outcome == FLOW_FAILED ? failed(self) : Py_BuildValue("(LL)", (long long)prefix_ns, (long long)state_ns);
}

static PyObject *flow_call_denoise(flow_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"noise", "bias_rows", "moments", "steps", "target", "weights", "signal", NULL};
    bind_request given = {0};
    Py_buffer *buffers = given.buffers;
    flow *loop = &self->loop;
    int steps;
    flow_request request;
    flow_result result;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*y*y*i|z*z*z*", names, &buffers[NOISE], &buffers[BIAS_ROWS],
                                     &buffers[MOMENTS], &steps, &buffers[TARGET], &buffers[WEIGHTS],
                                     &buffers[SIGNAL]))
        return NULL;
    PyObject *made = NULL;
    if (steps < 1 || steps > FLOW_MAX_STEPS) {
        PyErr_Format(PyExc_ValueError, "%d steps, must be 1 to %d", steps, FLOW_MAX_STEPS);
    } else if (bind_request_read(&given, steps, loop->rows, loop->columns, loop->width, &request) == 0) {
        Py_BEGIN_ALLOW_THREADS
        flow_denoise(loop, &request, &result);
        Py_END_ALLOW_THREADS
        made = result.outcome == FLOW_FAILED ? failed(self) : bind_request_result(&result);
    }
    bind_request_release(&given);
    return made;
}

static PyMethodDef flow_methods[] = {
    {"encode", (PyCFunction)flow_call_encode, METH_O, NULL},
    {"denoise", (PyCFunction)(void (*)(void))flow_call_denoise, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject flow_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.Flow",
    .tp_basicsize = sizeof(flow_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = flow_new,
    .tp_dealloc = (destructor)flow_dealloc,
    .tp_methods = flow_methods,
};

int bind_flow(PyObject *module)
{
    return module_add_type(module, "Flow", &flow_type);
}
