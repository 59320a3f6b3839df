/* SPDX-License-Identifier: Apache-2.0 */
/* The border to Python: the only file that includes Python.h.
 *
 * Each bind_*.c defines types or functions; module.c lists them all. What several
 * of them need stands here (parts.c) and in fields.h. The pure parts know nothing
 * of this folder; what each type and function is for says src/vla_edge/_core.pyi.
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "arm.h"
#include "shared.h"

/* The head of the static type `name`_type of the struct `name`. */
#define TYPE(name) PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core." #name, .tp_basicsize = sizeof(name)

extern PyTypeObject OrtRuntime_type, OrtSession_type, OrtBinding_type, Flow_type, CudaDriver_type, CudaLoop_type;
extern PyTypeObject ServoArm_type, Guardian_type, Pilot_type;
extern PyTypeObject RingWriter_type, Heartbeat_type, StateReader_type, RecordReader_type;

PyObject *call_control_run(PyObject *module, PyObject *args);
PyObject *call_control_answer_ns(PyObject *module, PyObject *period_ns);
PyObject *call_ring_notice(PyObject *module, PyObject *path);
PyObject *call_record_bytes(PyObject *module, PyObject *args);
PyObject *call_cuda_loop_layout(PyObject *module, PyObject *args);
PyObject *call_scale_picture(PyObject *module, PyObject *args);

/* A statement without the interpreter's lock. */
#define UNLOCKED(statement) Py_BEGIN_ALLOW_THREADS statement; Py_END_ALLOW_THREADS

/* An object around one mapped file, which lies first in it. */
typedef struct {
    PyObject_HEAD
    shared_file file;
} mapped;

/* A constructor of one argument, `path`, which `open` maps (0, or an errno); 0, or -1 with OSError set. */
int mapped_init(PyObject *object, PyObject *args, PyObject *kwargs, int (*open)(PyObject *self, const char *path));
void mapped_dealloc(PyObject *object);

/* An arm for the control loop: a Python object whose attribute `port` is a capsule around an arm_port (robot/bus/arm.h)
 * that lives as long as the object; the capsule keeps its owner alive. */
PyObject *capsule_of_port(PyObject *owner, arm_port *port);
/* The port of such an object; NULL with an error set. capsule: what keeps it alive, the caller's to release. */
const arm_port *port_of(PyObject *arm, PyObject **capsule);

/* A memoryview of a C-contiguous array, of float32 with `floats`; NULL with an error set that calls it `name`. */
PyObject *view_of(PyObject *array, const char *name, bool floats, bool writable);
/* The same, kept in the list `kept`: the buffer lives as long as the list. */
const Py_buffer *kept_floats(PyObject *kept, PyObject *array, const char *name, bool writable);
