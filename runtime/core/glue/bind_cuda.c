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
    if (!cuda_enter(&self->driver) || !cuda_ok(&self->driver, self->driver.call.exec_destroy(handle), "cuGraphExecDestroy"))
        return raise(&self->driver);
    Py_RETURN_NONE;
}

static PyObject *driver_version(driver_object *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(self->driver.version);
}

static PyGetSetDef driver_attributes[] = {{"version", (getter)driver_version, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyMethodDef driver_methods[] = {
    {"begin_capture", (PyCFunction)driver_begin, METH_O, NULL},
    {"end_capture", (PyCFunction)driver_end, METH_O, NULL},
    {"cancel_capture", (PyCFunction)driver_cancel, METH_O, NULL},
    {"destroy_graph", (PyCFunction)driver_destroy, METH_O, NULL},
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
    bool fits = PyBuffer_IsContiguous(buffer, 'C') && !buffer->readonly && buffer->format != NULL && buffer->format[0] == 'f';
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

static int fill(loop_object *self, PyObject *const parts[5], PyObject *x_in, PyObject *x_out, Py_ssize_t columns)
{
    cuda_loop *loop = &self->loop;
    void *streams[2], *events[6], *prefix[2], *state[2], *x[2];
    size_t in = 0, out = 0;
    if (handles(parts[0], "streams", streams, 2) < 0 || handles(parts[1], "events", events, 6) < 0
        || handles(parts[2], "prefix", prefix, 2) < 0 || handles(parts[3], "state", state, 2) < 0
        || handles(parts[4], "x", x, 2) < 0 || (loop->x_in = pinned(self, x_in, "x_in", &in)) == NULL
        || (loop->x_out = pinned(self, x_out, "x_out", &out)) == NULL)
        return -1;
    if (columns < 1 || in != out || in % (size_t)columns != 0) {
        PyErr_SetString(PyExc_ValueError, "x_in and x_out must be of one size, a multiple of columns");
        return -1;
    }
    loop->high = streams[0];
    loop->low = streams[1];
    for (int side = 0; side < 2; side++) {
        loop->filled[side] = events[side];
        loop->idle[side] = events[2 + side];
        loop->stepped[side] = events[4 + side];
        loop->prefix[side] = prefix[side];
        loop->state[side] = state[side];
        loop->x[side] = (uint64_t)(uintptr_t)x[side];
    }
    loop->columns = (size_t)columns;
    loop->rows = in / (size_t)columns;
    return 0;
}

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"driver", "streams", "events", "prefix", "state", "x", "x_in", "x_out", "columns", NULL};
    PyObject *driver, *parts[5], *x_in, *x_out;
    Py_ssize_t columns;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOOOOOOn", names, &driver_type, &driver, &parts[0], &parts[1],
                                     &parts[2], &parts[3], &parts[4], &x_in, &x_out, &columns))
        return NULL;
    loop_object *self = (loop_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->owner = (driver_object *)Py_NewRef(driver);
    self->loop.driver = &self->owner->driver;
    self->kept = PyList_New(0);
    if (self->kept == NULL || fill(self, parts, x_in, x_out, columns) < 0) {
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

static PyObject *loop_add_steps(loop_object *self, PyObject *args)
{
    int side;
    PyObject *whole, *steps, *dt, *finish;
    if (!PyArg_ParseTuple(args, "iOOOO", &side, &whole, &steps, &dt, &finish) || checked_side(side) < 0)
        return NULL;
    Py_ssize_t n = PyTuple_Check(steps) ? PyTuple_GET_SIZE(steps) : 0;
    if (n < 1 || n > FLOW_MAX_STEPS) {
        PyErr_Format(PyExc_ValueError, "steps must be a tuple of 1 to %d graphs", FLOW_MAX_STEPS);
        return NULL;
    }
    void *step[FLOW_MAX_STEPS], *address[FLOW_MAX_STEPS], *all = PyLong_AsVoidPtr(whole);
    size_t count = 0;
    if ((all == NULL && PyErr_Occurred()) || handles(steps, "steps", step, n) < 0 || handles(dt, "dt", address, n) < 0)
        return NULL;
    const float *values = pinned(self, finish, "finish", &count);
    if (values == NULL)
        return NULL;
    if (all == NULL || count != (size_t)n + 1) {
        PyErr_Format(PyExc_ValueError, "the whole loop's handle must not be 0 and finish must hold %zd floats", n + 1);
        return NULL;
    }
    cuda_steps *made = &self->loop.steps[side][n];
    for (Py_ssize_t k = 0; k < n; k++) {
        made->step[k] = step[k];
        made->dt[k] = (uint64_t)(uintptr_t)address[k];
    }
    made->whole = all;
    made->finish = values;
    made->count = (int)n;
    Py_RETURN_NONE;
}

static PyObject *loop_refresh(loop_object *self, PyObject *argument)
{
    int side = (int)PyLong_AsLong(argument);
    if (PyErr_Occurred() || checked_side(side) < 0)
        return NULL;
    return cuda_loop_refresh(&self->loop, side) ? Py_NewRef(Py_None) : raise(self->loop.driver);
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

static int captured(const cuda_loop *loop, int side, int steps)
{
    if (steps >= 1 && steps <= FLOW_MAX_STEPS && loop->steps[side][steps].count > 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "%d steps are not captured for side %d", steps, side);
    return -1;
}

static PyObject *loop_denoise(loop_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"side", "noise", "steps", "target", "weights", "signal", NULL};
    bind_request given = {0};
    Py_buffer *buffers = given.buffers;
    const cuda_loop *loop = &self->loop;
    int side, steps;
    flow_request request;
    flow_result result;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iy*i|z*z*z*", names, &side, &buffers[NOISE], &steps, &buffers[TARGET],
                                     &buffers[WEIGHTS], &buffers[SIGNAL]))
        return NULL;
    PyObject *made = NULL;
    if (checked_side(side) == 0 && captured(loop, side, steps) == 0
        && bind_request_read(&given, steps, loop->rows, loop->columns, 0, &request) == 0) {
        Py_BEGIN_ALLOW_THREADS
        cuda_loop_denoise(&self->loop, side, &request, &result);
        Py_END_ALLOW_THREADS
        made = result.outcome == FLOW_FAILED ? raise(loop->driver) : bind_request_result(&result);
    }
    bind_request_release(&given);
    return made;
}

static PyMethodDef loop_methods[] = {
    {"add_steps", (PyCFunction)loop_add_steps, METH_VARARGS, NULL},
    {"refresh", (PyCFunction)loop_refresh, METH_O, NULL},
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
    return module_add_type(module, "CudaLoop", &loop_type);
}
