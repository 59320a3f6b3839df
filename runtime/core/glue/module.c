/* SPDX-License-Identifier: Apache-2.0 */
/* The module table of vla_edge._core. */
#include "module.h"

int module_add_type(PyObject *module, const char *name, PyTypeObject *type)
{
    if (PyType_Ready(type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, name, (PyObject *)type);
}

static int (*const bindings[])(PyObject *module) = {
    bind_ort,
    bind_flow,
    bind_bus,
    bind_ring,
    bind_status,
    bind_pilot,
    bind_control,
    bind_guardian,
    bind_record,
    bind_cuda,
    bind_picture,
    NULL,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "vla_edge._core",
    .m_doc = "Control core and servo bus in C; see _core.pyi.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    for (size_t i = 0; bindings[i] != NULL; i++) {
        if (bindings[i](module) < 0) {
            Py_DECREF(module);
            return NULL;
        }
    }
    return module;
}
