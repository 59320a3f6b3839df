/* SPDX-License-Identifier: Apache-2.0 */
/* The module table of vla_edge._core. */
#include "module.h"

#include <string.h>

static PyTypeObject *const types[] = {
    &OrtRuntime_type, &OrtSession_type, &OrtBinding_type, &Flow_type,      &CudaDriver_type,  &CudaLoop_type,
    &ServoArm_type,   &Guardian_type,   &Pilot_type,      &RingWriter_type, &Heartbeat_type,  &StateReader_type,
    &RecordReader_type,
};

static PyMethodDef functions[] = {
    {"control_run", call_control_run, METH_VARARGS, NULL},
    {"control_answer_ns", call_control_answer_ns, METH_O, NULL},
    {"ring_notice", call_ring_notice, METH_O, NULL},
    {"record_bytes", call_record_bytes, METH_VARARGS, NULL},
    {"cuda_loop_layout", call_cuda_loop_layout, METH_VARARGS, NULL},
    {"scale_picture", call_scale_picture, METH_VARARGS, NULL},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "vla_edge._core",
    .m_doc = "Control core and servo bus in C; see _core.pyi.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module != NULL && i < sizeof types / sizeof types[0]; i++) {
        types[i]->tp_flags |= Py_TPFLAGS_DEFAULT;
        if (PyModule_AddType(module, types[i]) < 0)
            Py_CLEAR(module);
    }
    return module;
}
