/* SPDX-License-Identifier: Apache-2.0 */
/* What several bindings need: mapped files, ports of arms, buffers. */
#include "module.h"

int mapped_init(PyObject *object, PyObject *args, PyObject *kwargs, int (*open)(PyObject *self, const char *path))
{
    static char *names[] = {"path", NULL};
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    shared_close(&((mapped *)object)->file);
    errno = open(object, PyBytes_AS_STRING(path));
    const bool failed = errno != 0;
    if (failed)
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    Py_DECREF(path);
    return failed ? -1 : 0;
}

void mapped_dealloc(PyObject *object)
{
    shared_close(&((mapped *)object)->file);
    Py_TYPE(object)->tp_free(object);
}

#define PORT_CAPSULE "vla_edge._core.arm_port"

static void release_owner(PyObject *capsule)
{
    Py_XDECREF(PyCapsule_GetContext(capsule));
}

PyObject *capsule_of_port(PyObject *owner, arm_port *port)
{
    PyObject *capsule = PyCapsule_New(port, PORT_CAPSULE, release_owner);
    if (capsule != NULL)
        PyCapsule_SetContext(capsule, Py_NewRef(owner));
    return capsule;
}

const arm_port *port_of(PyObject *arm, PyObject **capsule)
{
    *capsule = PyObject_GetAttrString(arm, "port");
    return *capsule == NULL ? NULL : PyCapsule_GetPointer(*capsule, PORT_CAPSULE);
}

PyObject *view_of(PyObject *array, const char *name, bool floats, bool writable)
{
    PyObject *view = PyMemoryView_FromObject(array);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (PyBuffer_IsContiguous(buffer, 'C') && !(writable && buffer->readonly) &&
        (!floats || (buffer->format != NULL && buffer->format[0] == 'f')))
        return view;
    PyErr_Format(PyExc_ValueError, "%s must be a %sC-contiguous %sarray", name, writable ? "writable " : "",
                 floats ? "float32 " : "");
    Py_DECREF(view);
    return NULL;
}

const Py_buffer *kept_floats(PyObject *kept, PyObject *array, const char *name, bool writable)
{
    PyObject *view = view_of(array, name, true, writable);
    if (view == NULL || PyList_Append(kept, view) < 0) {
        Py_XDECREF(view);
        return NULL;
    }
    Py_DECREF(view);
    return PyMemoryView_GET_BUFFER(view);
}
