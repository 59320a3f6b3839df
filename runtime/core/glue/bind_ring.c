/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.RingWriter`: chunks and the notice of inference; `_core.ring_notice`; `_core.Heartbeat`: the supervisor's. */
#include "bind_chunk.h"

#include <unistd.h> /* getpid */

#include "beat.h"
#include "clock.h"
#include "ring.h"

typedef struct {
    mapped mapped;
    bool claims;
    int claim; /* descriptor */
} RingWriter;

static ring_file *ring_of(PyObject *object)
{
    return ((mapped *)object)->file.memory;
}

static void resign(PyObject *object)
{
    RingWriter *self = (RingWriter *)object;
    if (self->claims)
        ring_resign(ring_of(object), self->claim);
    self->claims = false;
}

static int open_writer(PyObject *object, const char *path)
{
    RingWriter *self = (RingWriter *)object;
    int failure = ring_open(&self->mapped.file, path, true);
    if (failure != 0)
        return failure;
    /* Pids and times do not repeat together within a boot, and a ring does not outlive one. */
    uint64_t number = (uint64_t)getpid() << 40 ^ (uint64_t)clock_now_ns();
    self->claim = ring_claim(ring_of(object), path, number);
    self->claims = self->claim >= 0;
    if (!self->claims) {
        shared_close(&self->mapped.file);
        return -self->claim;
    }
    ring_announce(ring_of(object), &(ring_notice){.dropped_through = -1}); /* it has measured nothing yet */
    return 0;
}

static int RingWriter_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    resign(object);
    return mapped_init(object, args, kwargs, open_writer);
}

static void RingWriter_dealloc(PyObject *object)
{
    resign(object);
    mapped_dealloc(object);
}

static PyObject *RingWriter_write(PyObject *object, PyObject *argument)
{
    chunk data;
    if (chunk_from_python(argument, &data) < 0)
        return NULL;
    ring_write(ring_of(object), &data);
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
    ring_announce(ring_of(object), &notice);
    Py_RETURN_NONE;
}

static PyMethodDef RingWriter_methods[] = {
    {"write", RingWriter_write, METH_O, NULL},
    {"announce", (PyCFunction)(void (*)(void))RingWriter_announce, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL},
};

PyTypeObject RingWriter_type = {
    TYPE(RingWriter),
    .tp_new = PyType_GenericNew,
    .tp_init = RingWriter_init,
    .tp_dealloc = RingWriter_dealloc,
    .tp_methods = RingWriter_methods,
};

PyObject *call_ring_notice(PyObject *Py_UNUSED(module), PyObject *argument)
{
    PyObject *path;
    shared_file file;
    ring_notice notice;
    if (!PyUnicode_FSConverter(argument, &path))
        return NULL;
    errno = ring_open(&file, PyBytes_AS_STRING(path), false);
    if (errno != 0)
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    Py_DECREF(path);
    if (PyErr_Occurred())
        return NULL;
    const bool whole = ring_notice_read(&(ring_reader){.ring = file.memory}, &notice);
    shared_close(&file);
    if (!whole)
        Py_RETURN_NONE;
    return Py_BuildValue("(LOLO)", (long long)notice.p99_ns, notice.plan_then_move ? Py_True : Py_False,
                         (long long)notice.dropped_through, notice.ready ? Py_True : Py_False);
}

typedef mapped Heartbeat;

static int open_beat(PyObject *object, const char *path)
{
    return beat_open(&((Heartbeat *)object)->file, path, true);
}

static int Heartbeat_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return mapped_init(object, args, kwargs, open_beat);
}

static PyObject *Heartbeat_beat(PyObject *object, PyObject *Py_UNUSED(unused))
{
    beat_write(((Heartbeat *)object)->file.memory, clock_now_ns());
    Py_RETURN_NONE;
}

static PyMethodDef Heartbeat_methods[] = {{"beat", Heartbeat_beat, METH_NOARGS, NULL}, {NULL}};

PyTypeObject Heartbeat_type = {
    TYPE(Heartbeat),
    .tp_new = PyType_GenericNew,
    .tp_init = Heartbeat_init,
    .tp_dealloc = mapped_dealloc,
    .tp_methods = Heartbeat_methods,
};
