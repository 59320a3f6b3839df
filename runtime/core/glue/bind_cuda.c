/* SPDX-License-Identifier: Apache-2.0 */
/* CudaDriver and CudaLoop: capture and launch of CUDA graphs. Handles cross as integers. */
#include "bind_request.h"
#include "cuda_loop.h"
#include "module.h"

typedef struct {
    PyObject_HEAD
    cuda_driver driver;
} driver_object;

typedef struct {
    PyObject_HEAD
    driver_object *owner;
    PyObject *kept; /* list of memoryviews over pinned memory */
    cuda_loop loop;
} loop_object;

static PyTypeObject driver_type;

static PyObject *raise(const cuda_driver *driver)
{
    PyErr_SetString(PyExc_RuntimeError, driver->message);
    return NULL;
}

/* ---- CudaDriver ---- */

static PyObject *driver_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"library", "device", NULL};
    const char *library = "libcuda.so.1";
    int device = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|si", names, &library, &device))
        return NULL;
    driver_object *self = (driver_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (!cuda_open(&self->driver, library, device)) {
        raise(&self->driver);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void driver_dealloc(driver_object *self)
{
    if (self->driver.library != NULL)
        cuda_close(&self->driver);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *driver_begin(driver_object *self, PyObject *stream)
{
    void *handle = PyLong_AsVoidPtr(stream);
    if (handle == NULL && PyErr_Occurred())
        return NULL;
    return cuda_capture_begin(&self->driver, handle) ? Py_NewRef(Py_None) : raise(&self->driver);
}

static PyObject *driver_end(driver_object *self, PyObject *stream)
{
    void *handle = PyLong_AsVoidPtr(stream);
    cuda_exec exec = NULL;
    if (handle == NULL && PyErr_Occurred())
        return NULL;
    bool made;
    Py_BEGIN_ALLOW_THREADS
    made = cuda_capture_end(&self->driver, handle, &exec);
    Py_END_ALLOW_THREADS
    return made ? PyLong_FromVoidPtr(exec) : raise(&self->driver);
}

static PyObject *driver_cancel(driver_object *self, PyObject *stream)
{
    void *handle = PyLong_AsVoidPtr(stream);
    if (handle == NULL && PyErr_Occurred())
        return NULL;
    cuda_capture_cancel(&self->driver, handle);
    Py_RETURN_NONE;
}

static PyObject *driver_destroy(driver_object *self, PyObject *exec)
{
    void *handle = PyLong_AsVoidPtr(exec);
    if (handle == NULL && PyErr_Occurred())
        return NULL;
    if (!cuda_enter(&self->driver) ||
        !cuda_ok(&self->driver, self->driver.call.exec_destroy(handle), "cuGraphExecDestroy"))
        return raise(&self->driver);
    Py_RETURN_NONE;
}

static PyObject *driver_launch(driver_object *self, PyObject *args)
{
    PyObject *exec, *stream;
    if (!PyArg_ParseTuple(args, "OO", &exec, &stream))
        return NULL;
    void *graph = PyLong_AsVoidPtr(exec), *on = PyErr_Occurred() ? NULL : PyLong_AsVoidPtr(stream);
    if (PyErr_Occurred())
        return NULL;
    if (!cuda_enter(&self->driver) || !cuda_ok(&self->driver, self->driver.call.launch(graph, on), "cuGraphLaunch"))
        return raise(&self->driver);
    Py_RETURN_NONE;
}

static PyObject *driver_version(driver_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(self->driver.version);
}

static PyGetSetDef driver_attributes[] = {{"version", (getter)driver_version, NULL, NULL, NULL},
                                          {NULL, NULL, NULL, NULL, NULL}};
static PyMethodDef driver_methods[] = {
    {"begin_capture", (PyCFunction)driver_begin, METH_O, NULL},
    {"end_capture", (PyCFunction)driver_end, METH_O, NULL},
    {"cancel_capture", (PyCFunction)driver_cancel, METH_O, NULL},
    {"destroy_graph", (PyCFunction)driver_destroy, METH_O, NULL},
    {"launch", (PyCFunction)driver_launch, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject driver_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.CudaDriver",
    .tp_basicsize = sizeof(driver_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = driver_new,
    .tp_dealloc = (destructor)driver_dealloc,
    .tp_methods = driver_methods,
    .tp_getset = driver_attributes,
};

/* ---- CudaLoop ---- */

/* Pinned floats, kept for the life of the loop. */
static float *pinned(loop_object *self, PyObject *array, const char *what, size_t *count)
{
    PyObject *view = PyMemoryView_FromObject(array);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    bool fits =
        PyBuffer_IsContiguous(buffer, 'C') && !buffer->readonly && buffer->format != NULL && buffer->format[0] == 'f';
    if (!fits)
        PyErr_Format(PyExc_ValueError, "%s must be a writable C-contiguous float32 array", what);
    int kept = fits ? PyList_Append(self->kept, view) : -1;
    Py_DECREF(view);
    *count = kept < 0 ? 0 : (size_t)buffer->len / sizeof(float);
    return kept < 0 ? NULL : buffer->buf;
}

/* Exactly `count` nonzero integers of a tuple. */
static int handles(PyObject *tuple, const char *what, void **out, Py_ssize_t count)
{
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != count) {
        PyErr_Format(PyExc_ValueError, "%s must be a tuple of %zd handles", what, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        out[i] = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, i));
        if (out[i] == NULL) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "%s: handle %zd is 0", what, i);
            return -1;
        }
    }
    return 0;
}

/* A pinned buffer of exactly `count` floats. */
static float *pinned_of(loop_object *self, PyObject *array, const char *what, size_t count)
{
    size_t found = 0;
    float *data = pinned(self, array, what, &found);
    if (data != NULL && found != count) {
        PyErr_Format(PyExc_ValueError, "%s has %zu floats, must have %zu", what, found, count);
        return NULL;
    }
    return data;
}

enum { STREAMS, EVENTS, PREFIX, STATE, ENDS, GROUPS, SINGLE, HANDLES };

static int fill(loop_object *self, PyObject *const parts[HANDLES], PyObject *const arrays[3])
{
    static const char *const names[HANDLES] = {"streams", "events", "prefix", "state", "ends", "groups", "single"};
    static const Py_ssize_t counts[HANDLES] = {2, 6, 2, 2, 2, 4, 2};
    cuda_loop *loop = &self->loop;
    void *found[HANDLES][6];
    for (int i = 0; i < HANDLES; i++)
        if (handles(parts[i], names[i], found[i], counts[i]) < 0)
            return -1;
    const cuda_layout *layout = &loop->layout;
    if ((loop->chunk_in = pinned_of(self, arrays[0], "chunk_in", layout->chunk_floats)) == NULL
        || (loop->step_in = pinned_of(self, arrays[1], "step_in", CUDA_ROWS * layout->step_floats)) == NULL
        || (loop->x_out = pinned_of(self, arrays[2], "x_out", layout->rows * layout->columns)) == NULL)
        return -1;
    loop->high = found[STREAMS][0];
    loop->low = found[STREAMS][1];
    loop->begin = found[ENDS][0];
    loop->end = found[ENDS][1];
    for (int side = 0; side < 2; side++) {
        loop->filled[side] = found[EVENTS][side];
        loop->idle[side] = found[EVENTS][2 + side];
        loop->stepped[side] = found[EVENTS][4 + side];
        loop->prefix[side] = found[PREFIX][side];
        loop->state[side] = found[STATE][side];
        loop->single[side] = found[SINGLE][side];
        for (int turn = 0; turn < 2; turn++)
            loop->group[side][turn] = found[GROUPS][2 * side + turn];
    }
    return 0;
}

static int read_layout(PyObject *shape, cuda_layout *out)
{
    Py_ssize_t rows, columns, width;
    if (!PyArg_ParseTuple(shape, "nnn", &rows, &columns, &width))
        return -1;
    if (rows < 1 || columns < 1 || width < 1) {
        PyErr_SetString(PyExc_ValueError, "rows, columns and width must be 1 or more");
        return -1;
    }
    *out = cuda_loop_layout((size_t)rows, (size_t)columns, (size_t)width);
    return 0;
}

/* The sizes of a loop's pinned buffers, so that no one else computes them. */
static PyObject *layout_of(PyObject *module, PyObject *args)
{
    (void)module;
    cuda_layout layout;
    if (read_layout(args, &layout) < 0)
        return NULL;
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n}", "group", (Py_ssize_t)CUDA_GROUP, "dt", (Py_ssize_t)layout.dt,
                         "target", (Py_ssize_t)layout.target, "step_floats", (Py_ssize_t)layout.step_floats, "weights",
                         (Py_ssize_t)layout.weights, "chunk_floats", (Py_ssize_t)layout.chunk_floats);
}

static PyMethodDef layout_method = {"cuda_loop_layout", layout_of, METH_VARARGS, NULL};

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"driver", "streams", "events", "prefix", "state", "ends", "groups", "single",
                            "shape", "chunk_in", "step_in", "x_out", NULL};
    PyObject *driver, *parts[HANDLES], *shape, *arrays[3];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOOOOOOO!OOO", names, &driver_type, &driver, &parts[STREAMS],
                                     &parts[EVENTS], &parts[PREFIX], &parts[STATE], &parts[ENDS], &parts[GROUPS],
                                     &parts[SINGLE], &PyTuple_Type, &shape, &arrays[0], &arrays[1], &arrays[2]))
        return NULL;
    loop_object *self = (loop_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->owner = (driver_object *)Py_NewRef(driver);
    self->loop.driver = &self->owner->driver;
    self->kept = PyList_New(0);
    if (self->kept == NULL || read_layout(shape, &self->loop.layout) < 0 || fill(self, parts, arrays) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void loop_dealloc(loop_object *self)
{
    Py_XDECREF(self->kept);
    Py_XDECREF((PyObject *)self->owner);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int checked_side(int side)
{
    if (side == 0 || side == 1)
        return 0;
    PyErr_Format(PyExc_ValueError, "side is %d, must be 0 or 1", side);
    return -1;
}

static PyObject *loop_refresh(loop_object *self, PyObject *argument)
{
    int side = (int)PyLong_AsLong(argument);
    if (PyErr_Occurred() || checked_side(side) < 0)
        return NULL;
    return cuda_loop_refresh(&self->loop, side) ? Py_NewRef(Py_None) : raise(self->loop.driver);
}

static PyObject *loop_wait(loop_object *self, PyObject *argument)
{
    int side = (int)PyLong_AsLong(argument);
    int64_t waited_ns;
    bool done;
    if (PyErr_Occurred() || checked_side(side) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = cuda_loop_wait(&self->loop, side, &waited_ns);
    Py_END_ALLOW_THREADS
    return done ? PyLong_FromLongLong(waited_ns) : raise(self->loop.driver);
}

static PyObject *loop_encode(loop_object *self, PyObject *args)
{
    int side, prefix;
    int64_t prefix_ns, state_ns;
    bool ran;
    if (!PyArg_ParseTuple(args, "ip", &side, &prefix) || checked_side(side) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    ran = cuda_loop_encode(&self->loop, side, prefix, &prefix_ns, &state_ns);
    Py_END_ALLOW_THREADS
    return ran ? Py_BuildValue("(LL)", (long long)prefix_ns, (long long)state_ns) : raise(self->loop.driver);
}

static PyObject *loop_denoise(loop_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"side", "noise", "bias_rows", "moments", "steps", "target", "weights", "signal", NULL};
    bind_request given = {0};
    Py_buffer *buffers = given.buffers;
    const cuda_layout *layout = &self->loop.layout;
    int side, steps;
    flow_request request;
    flow_result result;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iy*y*y*i|z*z*z*", names, &side, &buffers[NOISE],
                                     &buffers[BIAS_ROWS], &buffers[MOMENTS], &steps, &buffers[TARGET],
                                     &buffers[WEIGHTS], &buffers[SIGNAL]))
        return NULL;
    PyObject *made = NULL;
    if (steps < 1 || steps > FLOW_MAX_STEPS)
        PyErr_Format(PyExc_ValueError, "steps is %d, must be 1 to %d", steps, FLOW_MAX_STEPS);
    else if (checked_side(side) == 0
             && bind_request_read(&given, steps, layout->rows, layout->columns, layout->width, &request) == 0) {
        Py_BEGIN_ALLOW_THREADS
        cuda_loop_denoise(&self->loop, side, &request, &result);
        Py_END_ALLOW_THREADS
        made = result.outcome == FLOW_FAILED ? raise(self->loop.driver) : bind_request_result(&result);
    }
    bind_request_release(&given);
    return made;
}

static PyMethodDef loop_methods[] = {
    {"refresh", (PyCFunction)loop_refresh, METH_O, NULL},
    {"wait", (PyCFunction)loop_wait, METH_O, NULL},
    {"encode", (PyCFunction)loop_encode, METH_VARARGS, NULL},
    {"denoise", (PyCFunction)(void (*)(void))loop_denoise, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject loop_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.CudaLoop",
    .tp_basicsize = sizeof(loop_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = loop_new,
    .tp_dealloc = (destructor)loop_dealloc,
    .tp_methods = loop_methods,
};

int bind_cuda(PyObject *module)
{
    if (module_add_type(module, "CudaDriver", &driver_type) < 0)
        return -1;
    PyObject *layout = PyCFunction_New(&layout_method, NULL);
    if (layout == NULL || PyModule_AddObject(module, "cuda_loop_layout", layout) < 0) {
        Py_XDECREF(layout);
        return -1;
    }
    return module_add_type(module, "CudaLoop", &loop_type);
}
