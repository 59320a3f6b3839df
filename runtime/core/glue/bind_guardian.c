/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.Guardian`: an arm behind a claim for control, and the watch over it for a child forked from control. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "module.h"

#include "guardian.h"

#include <sys/mman.h>

typedef struct {
    PyObject_HEAD
    PyObject *arm; /* the capsule of its port */
    guardian_claim *claim;
    guarded_arm guarded;
    arm_port port;
    guardian watcher;
} Guardian;

static int Guardian_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"arm", "period_ns", NULL};
    Guardian *self = (Guardian *)object;
    PyObject *arm;
    long long period_ns;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OL", names, &arm, &period_ns))
        return -1;
    if (self->claim != NULL) {
        PyErr_SetString(PyExc_ValueError, "it guards an arm already");
        return -1;
    }
    const arm_port *port = port_of(arm, &self->arm);
    if (port == NULL)
        return -1;
    void *memory = mmap(NULL, sizeof *self->claim, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    self->claim = memory;
    self->port = guarded_port(&self->guarded, port, self->claim, period_ns);
    self->watcher = (guardian){.arm = port, .claim = self->claim};
    return 0;
}

static void Guardian_dealloc(PyObject *object)
{
    Guardian *self = (Guardian *)object;
    if (self->claim != NULL)
        munmap(self->claim, sizeof *self->claim);
    Py_XDECREF(self->arm);
    Py_TYPE(object)->tp_free(object);
}

static bool guards(const Guardian *self)
{
    if (self->claim == NULL)
        PyErr_SetString(PyExc_ValueError, "it guards no arm");
    return self->claim != NULL;
}

static PyObject *Guardian_port(PyObject *object, void *Py_UNUSED(unused))
{
    Guardian *self = (Guardian *)object;
    return guards(self) ? capsule_of_port(object, &self->port) : NULL;
}

static PyObject *Guardian_watched(PyObject *object, void *Py_UNUSED(unused))
{
    Guardian *self = (Guardian *)object;
    return guards(self) ? PyBool_FromLong(self->port.guarded(&self->guarded, clock_now_ns())) : NULL;
}

static PyObject *Guardian_watch(PyObject *object, PyObject *args)
{
    Guardian *self = (Guardian *)object;
    int control, priority;
    if (!PyArg_ParseTuple(args, "ii", &control, &priority) || !guards(self))
        return NULL;
    guardian_result result;
    Py_BEGIN_ALLOW_THREADS
    (void)clock_ask_realtime(priority);
    result = guardian_watch(&self->watcher, control);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(result == GUARDIAN_HELD);
}

static PyObject *Guardian_close(PyObject *object, PyObject *Py_UNUSED(unused))
{
    if (!guards((Guardian *)object))
        return NULL;
    guarded_close(&((Guardian *)object)->guarded);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"watch", Guardian_watch, METH_VARARGS, NULL},
    {"close", Guardian_close, METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef attributes[] = {
    {"port", Guardian_port, NULL, NULL, NULL},
    {"watched", Guardian_watched, NULL, NULL, NULL},
    {NULL},
};

PyTypeObject Guardian_type = {
    TYPE(Guardian),
    .tp_new = PyType_GenericNew,
    .tp_init = Guardian_init,
    .tp_dealloc = Guardian_dealloc,
    .tp_methods = methods,
    .tp_getset = attributes,
};
