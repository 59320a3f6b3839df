/* SPDX-License-Identifier: Apache-2.0 */
/* OrtRuntime, OrtSession and OrtBinding: the native ONNX Runtime sessions. */
#include "bind_request.h"
#include "ort_session.h"

typedef struct {
    PyObject_HEAD
    ort_runtime runtime;
    bool open;
} OrtRuntime;

typedef struct {
    PyObject_HEAD
    OrtRuntime *owner;
    ort_session session;
    PyObject *kept; /* the buffers that the session reads from */
} OrtSession;

typedef struct {
    PyObject_HEAD
    OrtSession *owner;
    ort_binding binding;
    PyObject *kept; /* name -> memoryview that is bound */
} OrtBinding;

static PyObject *raise(const ort_reason *reason)
{
    PyErr_SetString(PyExc_RuntimeError, reason->text);
    return NULL;
}

/* ---- tensors out of Python buffers ---- */

static int element_type(const char *format, ort_type *type)
{
    static const struct {
        char format;
        ort_type type;
    } types[] = {{'f', ORT_FLOAT32}, {'e', ORT_FLOAT16}, {'B', ORT_UINT8}, {'b', ORT_INT8},
                 {'i', ORT_INT32},   {'q', ORT_INT64},   {'l', ORT_INT64}, {'?', ORT_BOOL}};
    const char *native = format == NULL ? "B" : format + (format[0] == '<' || format[0] == '=' || format[0] == '@');
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (types[i].format == native[0]) {
            *type = types[i].type;
            return 0;
        }
    }
    PyErr_Format(PyExc_TypeError, "element format %s is not supported", format);
    return -1;
}

/* A contiguous view and the tensor over it. The view holds the memory; release it when the tensor is gone. */
static PyObject *tensor_of(PyObject *array, const char *name, bool writable, ort_tensor *tensor)
{
    PyObject *view = view_of(array, name, false, writable);
    const Py_buffer *buffer = view == NULL ? NULL : PyMemoryView_GET_BUFFER(view);
    if (buffer != NULL && buffer->ndim > ORT_MAX_RANK)
        PyErr_Format(PyExc_ValueError, "%s has more than %d dimensions", name, ORT_MAX_RANK);
    if (PyErr_Occurred() || element_type(buffer->format, &tensor->type) < 0) {
        Py_XDECREF(view);
        return NULL;
    }
    tensor->name = name;
    tensor->data = buffer->buf;
    tensor->bytes = (size_t)buffer->len;
    tensor->rank = (size_t)buffer->ndim;
    for (int i = 0; i < buffer->ndim; i++)
        tensor->shape[i] = buffer->shape[i];
    return view;
}

/* ---- OrtRuntime ---- */

static PyObject *OrtRuntime_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"library", "threads", "spin", NULL};
    const char *library;
    int threads = 0, spin = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "s|ip", names, &library, &threads, &spin))
        return NULL;
    OrtRuntime *self = (OrtRuntime *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    ort_reason reason = {0};
    self->open = ort_open(&self->runtime, library, threads, spin, &reason);
    if (self->open)
        return (PyObject *)self;
    Py_DECREF(self);
    return raise(&reason);
}

static void OrtRuntime_dealloc(PyObject *object)
{
    OrtRuntime *self = (OrtRuntime *)object;
    if (self->open)
        ort_close(&self->runtime);
    Py_TYPE(object)->tp_free(object);
}

/* The shared initialisers, whose views `kept` keeps; 0, or -1 with a Python error set. */
static int tensors_of(PyObject *shared, ort_tensor *tensors, PyObject *kept)
{
    PyObject *name, *array;
    Py_ssize_t position = 0;
    while (PyDict_Next(shared, &position, &name, &array)) {
        const char *text = PyUnicode_AsUTF8(name);
        PyObject *view = text == NULL ? NULL : tensor_of(array, text, false, tensors++);
        const int failed = view == NULL ? -1 : PyList_Append(kept, view);
        Py_XDECREF(view);
        if (failed)
            return -1;
    }
    return 0;
}

static PyObject *OrtRuntime_session(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"model", "shared", "folder", NULL};
    OrtRuntime *self = (OrtRuntime *)object;
    ort_source source = {0};
    Py_buffer model;
    PyObject *shared;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*O!|z", names, &model, &PyDict_Type, &shared, &source.folder))
        return NULL;
    source.model = model.buf;
    source.model_bytes = (size_t)model.len;
    source.shared_count = (size_t)PyDict_GET_SIZE(shared);
    ort_tensor *tensors = PyMem_Calloc(source.shared_count + 1, sizeof *tensors);
    source.shared = tensors;
    OrtSession *session = (OrtSession *)OrtSession_type.tp_alloc(&OrtSession_type, 0);
    bool made = false;
    if (tensors == NULL || session == NULL) {
        PyErr_NoMemory();
    } else if ((session->kept = PyList_New(0)) != NULL && PyList_Append(session->kept, shared) == 0 &&
               tensors_of(shared, tensors, session->kept) == 0) {
        UNLOCKED(made = ort_session_create(&session->session, &self->runtime, &source));
        if (made)
            session->owner = (OrtRuntime *)Py_NewRef(object);
        else
            raise(&session->session.reason);
    }
    PyMem_Free(tensors);
    PyBuffer_Release(&model);
    if (!made)
        Py_CLEAR(session);
    return (PyObject *)session;
}

static PyMemberDef OrtRuntime_members[] = {
    {"version", T_STRING_INPLACE, offsetof(OrtRuntime, runtime.version), READONLY, NULL},
    {0},
};
static PyMethodDef OrtRuntime_methods[] = {
    {"session", (PyCFunction)(void (*)(void))OrtRuntime_session, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL},
};
PyTypeObject OrtRuntime_type = {
    TYPE(OrtRuntime),
    .tp_new = OrtRuntime_new,
    .tp_dealloc = OrtRuntime_dealloc,
    .tp_methods = OrtRuntime_methods,
    .tp_members = OrtRuntime_members,
};

/* ---- OrtSession ---- */

static void OrtSession_dealloc(PyObject *object)
{
    OrtSession *self = (OrtSession *)object;
    if (self->owner != NULL)
        ort_session_destroy(&self->session);
    Py_XDECREF((PyObject *)self->owner);
    Py_XDECREF(self->kept);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *OrtSession_binding(PyObject *object, PyObject *Py_UNUSED(unused))
{
    OrtBinding *binding = (OrtBinding *)OrtBinding_type.tp_alloc(&OrtBinding_type, 0);
    if (binding == NULL)
        return NULL;
    binding->owner = (OrtSession *)Py_NewRef(object);
    binding->kept = PyDict_New();
    if (binding->kept != NULL && ort_binding_create(&binding->binding, &binding->owner->session))
        return (PyObject *)binding;
    if (!PyErr_Occurred())
        raise(&binding->binding.reason);
    Py_DECREF((PyObject *)binding);
    return NULL;
}

static PyMethodDef OrtSession_methods[] = {{"binding", OrtSession_binding, METH_NOARGS, NULL}, {NULL}};
PyTypeObject OrtSession_type = {
    TYPE(OrtSession), /* made by OrtRuntime.session alone, as bindings are by OrtSession.binding */
    .tp_dealloc = OrtSession_dealloc,
    .tp_methods = OrtSession_methods,
};

/* ---- OrtBinding ---- */

static void OrtBinding_dealloc(PyObject *object)
{
    OrtBinding *self = (OrtBinding *)object;
    if (self->owner != NULL)
        ort_binding_destroy(&self->binding);
    Py_XDECREF((PyObject *)self->owner);
    Py_XDECREF(self->kept);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *OrtBinding_bind(PyObject *object, PyObject *args)
{
    OrtBinding *self = (OrtBinding *)object;
    const char *name;
    PyObject *array;
    int output;
    ort_tensor tensor;
    if (!PyArg_ParseTuple(args, "sOp", &name, &array, &output))
        return NULL;
    PyObject *view = tensor_of(array, name, output, &tensor);
    if (view == NULL)
        return NULL;
    bool bound = ort_bind(&self->binding, &tensor, output);
    if (!bound)
        raise(&self->binding.reason);
    int kept = bound ? PyDict_SetItemString(self->kept, name, view) : -1;
    Py_DECREF(view);
    return kept < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *OrtBinding_run(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ort_binding *binding = &((OrtBinding *)object)->binding;
    bool ran;
    UNLOCKED(ran = ort_run(binding));
    return ran ? Py_NewRef(Py_None) : raise(&binding->reason);
}

static PyMethodDef OrtBinding_methods[] = {
    {"bind", OrtBinding_bind, METH_VARARGS, NULL},
    {"run", OrtBinding_run, METH_NOARGS, NULL},
    {NULL},
};
PyTypeObject OrtBinding_type = {
    TYPE(OrtBinding),
    .tp_dealloc = OrtBinding_dealloc,
    .tp_methods = OrtBinding_methods,
};

static bool run_binding(void *context)
{
    return ort_run(context);
}

int bind_ort_graph(PyObject *binding, flow_graph *graph)
{
    if (!Py_IS_TYPE(binding, &OrtBinding_type)) {
        PyErr_SetString(PyExc_TypeError, "an OrtBinding is needed");
        return -1;
    }
    *graph = (flow_graph){&((OrtBinding *)binding)->binding, run_binding};
    return 0;
}

const char *bind_ort_message(const flow_graph *graph)
{
    return ((const ort_binding *)graph->context)->reason.text;
}
