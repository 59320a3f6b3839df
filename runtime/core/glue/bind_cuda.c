/* SPDX-License-Identifier: Apache-2.0 */
/* CudaDriver and CudaLoop: capture and launch of CUDA graphs. Handles cross as integers. */
#include "bind_request.h"
#include "cuda_loop.h"
#include "fields.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    cuda_driver driver;
} CudaDriver;

typedef struct {
    PyObject_HEAD
    PyObject *owner; /* its CudaDriver */
    PyObject *kept;  /* list of memoryviews over pinned memory */
    cuda_loop loop;
} CudaLoop;

static PyObject *raise(const cuda_driver *driver)
{
    PyErr_SetString(PyExc_RuntimeError, driver->message);
    return NULL;
}

static PyObject *none_or_raise(bool worked, const cuda_driver *driver)
{
    return worked ? Py_NewRef(Py_None) : raise(driver);
}

static int handle_of(PyObject *number, void *out)
{
    void *handle = PyLong_AsVoidPtr(number);
    memcpy(out, &handle, sizeof handle);
    return handle != NULL || !PyErr_Occurred();
}

/* ---- CudaDriver ---- */

static PyObject *CudaDriver_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"library", "device", NULL};
    const char *library = "libcuda.so.1";
    int device = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|si", names, &library, &device))
        return NULL;
    CudaDriver *self = (CudaDriver *)type->tp_alloc(type, 0);
    if (self == NULL || cuda_open(&self->driver, library, device))
        return (PyObject *)self;
    raise(&self->driver);
    Py_DECREF((PyObject *)self);
    return NULL;
}

static void CudaDriver_dealloc(PyObject *object)
{
    cuda_driver *driver = &((CudaDriver *)object)->driver;
    if (driver->library != NULL)
        cuda_close(driver);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *CudaDriver_begin(PyObject *self, PyObject *number)
{
    cuda_driver *driver = &((CudaDriver *)self)->driver;
    cuda_stream stream;
    return handle_of(number, &stream) ? none_or_raise(cuda_capture_begin(driver, stream), driver) : NULL;
}

static PyObject *CudaDriver_end(PyObject *self, PyObject *number)
{
    cuda_driver *driver = &((CudaDriver *)self)->driver;
    cuda_stream stream;
    cuda_exec exec = NULL;
    bool made;
    if (!handle_of(number, &stream))
        return NULL;
    UNLOCKED(made = cuda_capture_end(driver, stream, &exec));
    return made ? PyLong_FromVoidPtr(exec) : raise(driver);
}

static PyObject *CudaDriver_cancel(PyObject *self, PyObject *number)
{
    cuda_stream stream;
    if (!handle_of(number, &stream))
        return NULL;
    cuda_capture_cancel(&((CudaDriver *)self)->driver, stream);
    Py_RETURN_NONE;
}

static PyObject *CudaDriver_destroy(PyObject *self, PyObject *number)
{
    cuda_driver *driver = &((CudaDriver *)self)->driver;
    cuda_exec exec;
    if (!handle_of(number, &exec))
        return NULL;
    return none_or_raise(
        cuda_enter(driver) && cuda_ok(driver, driver->call.exec_destroy(exec), "cuGraphExecDestroy"), driver);
}

static PyObject *CudaDriver_launch(PyObject *self, PyObject *args)
{
    cuda_driver *driver = &((CudaDriver *)self)->driver;
    cuda_exec graph;
    cuda_stream stream;
    if (!PyArg_ParseTuple(args, "O&O&", handle_of, &graph, handle_of, &stream))
        return NULL;
    return none_or_raise(cuda_enter(driver) && cuda_ok(driver, driver->call.launch(graph, stream), "cuGraphLaunch"),
                         driver);
}

static PyMemberDef CudaDriver_members[] = {
    {"version", T_INT, offsetof(CudaDriver, driver.version), READONLY, NULL},
    {0},
};
static PyMethodDef CudaDriver_methods[] = {
    {"begin_capture", CudaDriver_begin, METH_O, NULL},
    {"end_capture", CudaDriver_end, METH_O, NULL},
    {"cancel_capture", CudaDriver_cancel, METH_O, NULL},
    {"destroy_graph", CudaDriver_destroy, METH_O, NULL},
    {"launch", CudaDriver_launch, METH_VARARGS, NULL},
    {NULL},
};
PyTypeObject CudaDriver_type = {
    TYPE(CudaDriver),
    .tp_new = CudaDriver_new,
    .tp_dealloc = CudaDriver_dealloc,
    .tp_methods = CudaDriver_methods,
    .tp_members = CudaDriver_members,
};

/* ---- CudaLoop ---- */

/* Pinned memory of exactly `count` floats, kept for the life of the loop. */
static float *pinned(CudaLoop *self, PyObject *array, const char *name, size_t count)
{
    const Py_buffer *buffer = kept_floats(self->kept, array, name, true);
    if (buffer != NULL && (size_t)buffer->len == count * sizeof(float))
        return buffer->buf;
    if (buffer != NULL)
        PyErr_Format(PyExc_ValueError, "%s has %zu floats, must have %zu", name, (size_t)buffer->len / sizeof(float),
                     count);
    return NULL;
}

/* Exactly `count` nonzero integers of a tuple, as the pointers that lie at `out`. */
static int take_handles(PyObject *tuple, const char *name, void *out, Py_ssize_t count)
{
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != count) {
        PyErr_Format(PyExc_ValueError, "%s must be a tuple of %zd handles", name, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        void *handle = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, i));
        if (handle == NULL) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "%s: handle %zd is 0", name, i);
            return -1;
        }
        memcpy((char *)out + (size_t)i * sizeof handle, &handle, sizeof handle);
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
PyObject *call_cuda_loop_layout(PyObject *Py_UNUSED(module), PyObject *args)
{
    static const field fields[] = {
        FIELD(cuda_layout, dt), FIELD(cuda_layout, target), FIELD(cuda_layout, step_floats),
        FIELD(cuda_layout, weights), FIELD(cuda_layout, chunk_floats), {0},
    };
    cuda_layout layout;
    if (read_layout(args, &layout) < 0)
        return NULL;
    PyObject *dict = fields_dict(fields, &layout, 0);
    if (put(dict, "group", PyLong_FromLong(CUDA_GROUP)) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *CudaLoop_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"driver", "streams", "events", "prefix", "state", "ends", "groups", "single",
                            "shape", "chunk_in", "step_in", "x_out", NULL};
    PyObject *driver, *parts[7], *shape, *arrays[3];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOOOOOOO!OOO", names, &CudaDriver_type, &driver, &parts[0],
                                     &parts[1], &parts[2], &parts[3], &parts[4], &parts[5], &parts[6], &PyTuple_Type,
                                     &shape, &arrays[0], &arrays[1], &arrays[2]))
        return NULL;
    CudaLoop *self = (CudaLoop *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    cuda_loop *loop = &self->loop;
    const cuda_layout *layout = &loop->layout;
    const struct {
        void *at;
        Py_ssize_t count;
    } places[] = {{&loop->high, 2},  {&loop->filled, 6}, {&loop->prefix, 2}, {&loop->state, 2},
                  {&loop->begin, 2}, {&loop->group, 4},  {&loop->single, 2}};
    self->owner = Py_NewRef(driver);
    self->kept = PyList_New(0);
    loop->driver = &((CudaDriver *)driver)->driver;
    bool made = self->kept != NULL && read_layout(shape, &loop->layout) == 0;
    for (size_t i = 0; made && i < sizeof places / sizeof places[0]; i++)
        made = take_handles(parts[i], names[1 + i], places[i].at, places[i].count) == 0;
    if (made && (loop->chunk_in = pinned(self, arrays[0], "chunk_in", layout->chunk_floats)) != NULL &&
        (loop->step_in = pinned(self, arrays[1], "step_in", CUDA_ROWS * layout->step_floats)) != NULL &&
        (loop->x_out = pinned(self, arrays[2], "x_out", layout->rows * layout->columns)) != NULL)
        return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return NULL;
}

static void CudaLoop_dealloc(PyObject *object)
{
    Py_XDECREF(((CudaLoop *)object)->owner);
    Py_XDECREF(((CudaLoop *)object)->kept);
    Py_TYPE(object)->tp_free(object);
}

/* From a number; 0, or -1 with a Python error set. */
static int side_of(PyObject *number, int *side)
{
    *side = (int)PyLong_AsLong(number);
    return PyErr_Occurred() ? -1 : bind_side(*side);
}

static PyObject *CudaLoop_refresh(PyObject *object, PyObject *number)
{
    cuda_loop *loop = &((CudaLoop *)object)->loop;
    int side;
    return side_of(number, &side) < 0 ? NULL : none_or_raise(cuda_loop_refresh(loop, side), loop->driver);
}

static PyObject *CudaLoop_wait(PyObject *object, PyObject *number)
{
    cuda_loop *loop = &((CudaLoop *)object)->loop;
    int side;
    int64_t waited_ns;
    bool done;
    if (side_of(number, &side) < 0)
        return NULL;
    UNLOCKED(done = cuda_loop_wait(loop, side, &waited_ns));
    return done ? PyLong_FromLongLong(waited_ns) : raise(loop->driver);
}

static PyObject *CudaLoop_encode(PyObject *object, PyObject *args)
{
    cuda_loop *loop = &((CudaLoop *)object)->loop;
    int side, prefix;
    int64_t prefix_ns, state_ns;
    bool ran;
    if (!PyArg_ParseTuple(args, "ip", &side, &prefix) || bind_side(side) < 0)
        return NULL;
    UNLOCKED(ran = cuda_loop_encode(loop, side, prefix, &prefix_ns, &state_ns));
    return ran ? Py_BuildValue("(LL)", (long long)prefix_ns, (long long)state_ns) : raise(loop->driver);
}

static PyObject *CudaLoop_denoise(PyObject *object, PyObject *args, PyObject *keywords)
{
    cuda_loop *loop = &((CudaLoop *)object)->loop;
    const cuda_layout *layout = &loop->layout;
    bind_request given;
    flow_result result;
    int side;
    if (bind_request_read(&given, args, keywords, &side, layout->rows, layout->columns, layout->width) < 0)
        return NULL;
    UNLOCKED(cuda_loop_denoise(loop, side, &given.request, &result));
    bind_request_release(&given);
    return result.outcome == FLOW_FAILED ? raise(loop->driver) : bind_request_result(&result);
}

static PyMethodDef CudaLoop_methods[] = {
    {"refresh", CudaLoop_refresh, METH_O, NULL},
    {"wait", CudaLoop_wait, METH_O, NULL},
    {"encode", CudaLoop_encode, METH_VARARGS, NULL},
    {"denoise", (PyCFunction)(void (*)(void))CudaLoop_denoise, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL},
};
PyTypeObject CudaLoop_type = {
    TYPE(CudaLoop),
    .tp_new = CudaLoop_new,
    .tp_dealloc = CudaLoop_dealloc,
    .tp_methods = CudaLoop_methods,
};
