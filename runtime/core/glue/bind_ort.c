/* SPDX-License-Identifier: Apache-2.0 */
/* OrtRuntime, OrtSession and OrtBinding: the native ONNX Runtime sessions. */
#include "bind_ort.h"
#include "ort_session.h"

typedef struct {
    PyObject_HEAD
    ort_runtime runtime;
    bool open;
} runtime_object;

typedef struct {
    PyObject_HEAD
    runtime_object *owner;
    ort_session session;
    PyObject *kept; /* the buffers that the session reads from */
} session_object;

typedef struct {
    PyObject_HEAD
    session_object *owner;
    ort_binding binding;
    PyObject *kept; /* name -> memoryview that is bound */
} binding_object;

static PyTypeObject session_type, binding_type;

static PyObject *raise(const ort_reason *reason)
{
    PyErr_SetString(PyExc_RuntimeError, reason->text);
    return NULL;
}

/* ---- tensors out of Python buffers ---- */

static int element_type(const char *format, ort_type *type)
{
    switch (format == NULL ? 'B' : format[0] == '<' || format[0] == '=' || format[0] == '@' ? format[1] : format[0]) {
    case 'f': *type = ORT_FLOAT32; return 0;
    case 'e': *type = ORT_FLOAT16; return 0;
    case 'B': *type = ORT_UINT8; return 0;
    case 'b': *type = ORT_INT8; return 0;
    case 'i': *type = ORT_INT32; return 0;
    case 'q':
    case 'l': *type = ORT_INT64; return 0;
    case '?': *type = ORT_BOOL; return 0;
    default:
        PyErr_Format(PyExc_TypeError, "element format %s is not supported", format);
        return -1;
    }
}

/* A contiguous view and the tensor over it. The view holds the memory; release it when the tensor is gone. */
static PyObject *tensor_of(PyObject *array, const char *name, bool writable, ort_tensor *tensor)
{
    PyObject *view = PyMemoryView_FromObject(array);
    if (view == NULL)
        return NULL;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (!PyBuffer_IsContiguous(buffer, 'C') || buffer->ndim > ORT_MAX_RANK || (writable && buffer->readonly)) {
        PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous%s array of at most %d dimensions", name,
                     writable ? " writable" : "", ORT_MAX_RANK);
        Py_DECREF(view);
        return NULL;
    }
    if (element_type(buffer->format, &tensor->type) < 0) {
        Py_DECREF(view);
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

static PyObject *runtime_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"library", "threads", "spin", NULL};
    const char *library;
    int threads = 0, spin = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "s|ip", names, &library, &threads, &spin))
        return NULL;
    runtime_object *self = (runtime_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    ort_reason reason = {0};
    self->open = ort_open(&self->runtime, library, threads, spin, &reason);
    if (!self->open) {
        raise(&reason);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void runtime_dealloc(runtime_object *self)
{
    if (self->open)
        ort_close(&self->runtime);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *runtime_version(runtime_object *self, void *closure)
{
    (void)closure;
    return PyUnicode_FromString(self->runtime.version);
}

enum { MAX_SHARED = 4096 };

typedef struct {
    ort_tensor *shared;
    ort_source source;
    PyObject *kept;
} source_builder;

static int add_shared(source_builder *builder, PyObject *name, PyObject *array)
{
    if (builder->source.shared_count == MAX_SHARED) {
        PyErr_Format(PyExc_ValueError, "more than %d shared initialisers", MAX_SHARED);
        return -1;
    }
    const char *text = PyUnicode_AsUTF8(name);
    ort_tensor *tensor = &builder->shared[builder->source.shared_count];
    PyObject *view = text == NULL ? NULL : tensor_of(array, text, false, tensor);
    if (view == NULL || PyList_Append(builder->kept, view) < 0) {
        Py_XDECREF(view);
        return -1;
    }
    Py_DECREF(view);
    builder->source.shared_count++;
    return 0;
}

static int add_all(source_builder *builder, PyObject *shared)
{
    PyObject *name, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(shared, &position, &name, &value))
        if (add_shared(builder, name, value) < 0)
            return -1;
    return 0;
}

static PyObject *runtime_session(runtime_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"model", "shared", "folder", NULL};
    const char *folder = NULL;
    Py_buffer model;
    PyObject *shared, *made = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*O!|z", names, &model, &PyDict_Type, &shared, &folder))
        return NULL;
    session_object *session = (session_object *)session_type.tp_alloc(&session_type, 0);
    source_builder builder = {.shared = PyMem_Calloc(MAX_SHARED, sizeof(ort_tensor)), .kept = PyList_New(0)};
    if (session == NULL || builder.shared == NULL || builder.kept == NULL) {
        PyErr_NoMemory();
    } else if (PyList_Append(builder.kept, shared) == 0 && add_all(&builder, shared) == 0) {
        builder.source.model = model.buf;
        builder.source.model_bytes = (size_t)model.len;
        builder.source.folder = folder;
        builder.source.shared = builder.shared;
        bool created;
        Py_BEGIN_ALLOW_THREADS
        created = ort_session_create(&session->session, &self->runtime, &builder.source);
        Py_END_ALLOW_THREADS
        if (created) {
            session->owner = (runtime_object *)Py_NewRef((PyObject *)self);
            session->kept = Py_NewRef(builder.kept);
            made = Py_NewRef((PyObject *)session);
        } else {
            raise(&session->session.reason);
        }
    }
    Py_XDECREF((PyObject *)session);
    Py_XDECREF(builder.kept);
    PyMem_Free(builder.shared);
    PyBuffer_Release(&model);
    return made;
}

static PyGetSetDef runtime_attributes[] = {
    {"version", (getter)runtime_version, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef runtime_methods[] = {
    {"session", (PyCFunction)(void (*)(void))runtime_session, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject runtime_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.OrtRuntime",
    .tp_basicsize = sizeof(runtime_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = runtime_new,
    .tp_dealloc = (destructor)runtime_dealloc,
    .tp_methods = runtime_methods,
    .tp_getset = runtime_attributes,
};

/* ---- OrtSession ---- */

static void session_dealloc(session_object *self)
{
    if (self->owner != NULL)
        ort_session_destroy(&self->session);
    Py_XDECREF((PyObject *)self->owner);
    Py_XDECREF(self->kept);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *session_binding(session_object *self, PyObject *unused)
{
    (void)unused;
    binding_object *binding = (binding_object *)binding_type.tp_alloc(&binding_type, 0);
    if (binding == NULL)
        return NULL;
    binding->owner = (session_object *)Py_NewRef((PyObject *)self);
    binding->kept = PyDict_New();
    if (binding->kept == NULL || !ort_binding_create(&binding->binding, &self->session)) {
        if (!PyErr_Occurred())
            raise(&binding->binding.reason);
        Py_DECREF((PyObject *)binding);
        return NULL;
    }
    return (PyObject *)binding;
}

static PyMethodDef session_methods[] = {
    {"binding", (PyCFunction)session_binding, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject session_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.OrtSession",
    .tp_basicsize = sizeof(session_object),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)session_dealloc,
    .tp_methods = session_methods,
};

/* ---- OrtBinding ---- */

static void binding_dealloc(binding_object *self)
{
    if (self->owner != NULL)
        ort_binding_destroy(&self->binding);
    Py_XDECREF((PyObject *)self->owner);
    Py_XDECREF(self->kept);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *bind_array(binding_object *self, PyObject *args, bool output)
{
    const char *name;
    PyObject *array;
    ort_tensor tensor;
    if (!PyArg_ParseTuple(args, "sO", &name, &array))
        return NULL;
    PyObject *view = tensor_of(array, name, output, &tensor);
    if (view == NULL)
        return NULL;
    bool bound = output ? ort_bind_output(&self->binding, &tensor) : ort_bind_input(&self->binding, &tensor);
    if (!bound)
        raise(&self->binding.reason);
    int kept = bound ? PyDict_SetItemString(self->kept, name, view) : -1;
    Py_DECREF(view);
    if (kept < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *binding_input(binding_object *self, PyObject *args)
{
    return bind_array(self, args, false);
}

static PyObject *binding_output(binding_object *self, PyObject *args)
{
    return bind_array(self, args, true);
}

static PyObject *binding_run(binding_object *self, PyObject *unused)
{
    (void)unused;
    bool ran;
    Py_BEGIN_ALLOW_THREADS
    ran = ort_run(&self->binding);
    Py_END_ALLOW_THREADS
    if (!ran)
        return raise(&self->binding.reason);
    Py_RETURN_NONE;
}

static PyMethodDef binding_methods[] = {
    {"bind_input", (PyCFunction)binding_input, METH_VARARGS, NULL},
    {"bind_output", (PyCFunction)binding_output, METH_VARARGS, NULL},
    {"run", (PyCFunction)binding_run, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject binding_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.OrtBinding",
    .tp_basicsize = sizeof(binding_object),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)binding_dealloc,
    .tp_methods = binding_methods,
};

static bool run_binding(void *context)
{
    return ort_run(context);
}

int bind_ort_graph(PyObject *binding, flow_graph *graph)
{
    if (!Py_IS_TYPE(binding, &binding_type)) {
        PyErr_SetString(PyExc_TypeError, "an OrtBinding is needed");
        return -1;
    }
    *graph = (flow_graph){&((binding_object *)binding)->binding, run_binding};
    return 0;
}

const char *bind_ort_message(const flow_graph *graph)
{
    return ((const ort_binding *)graph->context)->reason.text;
}

int bind_ort(PyObject *module)
{
    if (module_add_type(module, "OrtRuntime", &runtime_type) < 0)
        return -1;
    if (module_add_type(module, "OrtSession", &session_type) < 0)
        return -1;
    return module_add_type(module, "OrtBinding", &binding_type);
}
