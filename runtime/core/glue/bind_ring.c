/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.RingWriter` and `_core.RingReader`: chunks and the notice of inference. */
#include "module.h"
#include "bind_chunk.h"

#include <unistd.h> /* getpid */

#include "beat.h"
#include "clock.h"
#include "ring.h"

typedef struct {
    PyObject_HEAD
    shared_file file;
    int lock; /* descriptor, -1: none */
} RingWriter;

static void RingWriter_release(RingWriter *self)
{
    if (self->lock >= 0)
        ring_resign(self->file.memory, self->lock);
    self->lock = -1;
    shared_close(&self->file);
}

static PyObject *RingWriter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    RingWriter *self = (RingWriter *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->lock = -1;
    return (PyObject *)self;
}

static int RingWriter_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    RingWriter *self = (RingWriter *)object;
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    RingWriter_release(self);
    int failure = ring_open(&self->file, PyBytes_AS_STRING(path), true);
    if (failure == 0) {
        /* Pids and times do not repeat together within a boot, and a ring does not outlive one. */
        uint64_t number = (uint64_t)getpid() << 40 ^ (uint64_t)clock_now_ns();
        self->lock = ring_claim(self->file.memory, PyBytes_AS_STRING(path), number);
        failure = self->lock < 0 ? -self->lock : 0;
        if (failure != 0)
            RingWriter_release(self);
    }
    if (failure != 0) {
        errno = failure;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    } else {
        ring_notice nothing = {.dropped_through = -1}; /* a new writer has measured nothing yet */
        ring_announce(self->file.memory, &nothing);
    }
    Py_DECREF(path);
    return failure ? -1 : 0;
}

static void RingWriter_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    RingWriter_release((RingWriter *)object);
    type->tp_free(object);
}

static PyObject *RingWriter_write(PyObject *object, PyObject *argument)
{
    chunk data;
    if (chunk_from_python(argument, &data) < 0)
        return NULL;
    ring_write(((RingWriter *)object)->file.memory, &data);
    Py_RETURN_NONE;
}

static PyObject *RingWriter_announce(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"p99_ns", "plan_then_move", "dropped_through", "ready", NULL};
    long long p99_ns, dropped_through = -1;
    int plan_then_move, ready = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Lp|Lp", names, &p99_ns, &plan_then_move, &dropped_through, &ready))
        return NULL;
    ring_notice notice = {
        .p99_ns = p99_ns,
        .plan_then_move = (uint64_t)plan_then_move,
        .dropped_through = dropped_through,
        .ready = (uint64_t)ready,
    };
    ring_announce(((RingWriter *)object)->file.memory, &notice);
    Py_RETURN_NONE;
}

static PyMethodDef RingWriter_methods[] = {
    {"write", RingWriter_write, METH_O, "Write one chunk."},
    {"announce", (PyCFunction)(void (*)(void))RingWriter_announce, METH_VARARGS | METH_KEYWORDS,
     "Tell how long an inference takes."},
    {NULL},
};

static PyTypeObject RingWriter_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.RingWriter",
    .tp_basicsize = sizeof(RingWriter),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = RingWriter_new,
    .tp_init = RingWriter_init,
    .tp_dealloc = RingWriter_dealloc,
    .tp_methods = RingWriter_methods,
};

typedef struct {
    PyObject_HEAD
    shared_file file;
    ring_reader reader;
} RingReader;

static int RingReader_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    RingReader *self = (RingReader *)object;
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    shared_close(&self->file);
    int failure = ring_open(&self->file, PyBytes_AS_STRING(path), false);
    if (failure != 0) {
        errno = failure;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    } else {
        ring_reader_start(&self->reader, self->file.memory);
    }
    Py_DECREF(path);
    return failure ? -1 : 0;
}

static void RingReader_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    shared_close(&((RingReader *)object)->file);
    type->tp_free(object);
}

static PyObject *RingReader_notice(PyObject *object, PyObject *unused)
{
    (void)unused;
    ring_notice notice;
    if (!ring_notice_read(&((RingReader *)object)->reader, &notice))
        Py_RETURN_NONE;
    return Py_BuildValue("(LOLO)", (long long)notice.p99_ns, notice.plan_then_move ? Py_True : Py_False,
                         (long long)notice.dropped_through, notice.ready ? Py_True : Py_False);
}

static PyMethodDef RingReader_methods[] = {
    {"notice", RingReader_notice, METH_NOARGS, "p99_ns, plan_then_move, dropped_through, ready."},
    {NULL},
};

static PyTypeObject RingReader_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.RingReader",
    .tp_basicsize = sizeof(RingReader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = RingReader_init,
    .tp_dealloc = RingReader_dealloc,
    .tp_methods = RingReader_methods,
};

/* The supervisor's end of the heartbeat. */
typedef struct {
    PyObject_HEAD
    shared_file file;
} Heartbeat;

static int Heartbeat_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    Heartbeat *self = (Heartbeat *)object;
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    shared_close(&self->file);
    int failure = beat_open(&self->file, PyBytes_AS_STRING(path), true);
    if (failure != 0) {
        errno = failure;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    }
    Py_DECREF(path);
    return failure ? -1 : 0;
}

static void Heartbeat_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    shared_close(&((Heartbeat *)object)->file);
    type->tp_free(object);
}

static PyObject *Heartbeat_beat(PyObject *object, PyObject *unused)
{
    (void)unused;
    beat_write(((Heartbeat *)object)->file.memory, clock_now_ns());
    Py_RETURN_NONE;
}

static PyMethodDef Heartbeat_methods[] = {
    {"beat", Heartbeat_beat, METH_NOARGS, "Still here."},
    {NULL},
};

static PyTypeObject Heartbeat_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.Heartbeat",
    .tp_basicsize = sizeof(Heartbeat),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = Heartbeat_init,
    .tp_dealloc = Heartbeat_dealloc,
    .tp_methods = Heartbeat_methods,
};

int bind_ring(PyObject *module)
{
    if (module_add_type(module, "Heartbeat", &Heartbeat_type) < 0)
        return -1;
    if (module_add_type(module, "RingWriter", &RingWriter_type) < 0)
        return -1;
    return module_add_type(module, "RingReader", &RingReader_type);
}
