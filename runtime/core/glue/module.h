/* SPDX-License-Identifier: Apache-2.0 */
/* The border to Python: the only file that includes Python.h.
 *
 * Each bind_*.c adds one type (or one group of functions) to the module with a
 * `bind_NAME(module)` that returns 0, or -1 with a Python error set; module.c
 * calls them in turn. The pure parts know nothing of this file.
 */
#ifndef VLA_MODULE_H
#define VLA_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* An arm for the control loop: a Python object whose attribute `port` is a
 * PyCapsule of this name around an `arm_port *` (robot/bus/arm.h) that lives as
 * long as the object. */
#define ARM_PORT_CAPSULE "vla_edge._core.arm_port"

/* Adds a static type under `name`; returns 0, or -1 with a Python error set. */
int module_add_type(PyObject *module, const char *name, PyTypeObject *type);

int bind_ort(PyObject *module);
int bind_flow(PyObject *module);
int bind_bus(PyObject *module);
int bind_ring(PyObject *module);
int bind_status(PyObject *module);
int bind_pilot(PyObject *module);
int bind_control(PyObject *module);
int bind_guardian(PyObject *module);
int bind_record(PyObject *module);
int bind_cuda(PyObject *module);
int bind_picture(PyObject *module);

#endif
