/* SPDX-License-Identifier: Apache-2.0 */
/* Values that several bindings convert. */
#ifndef VLA_BIND_CHUNK_H
#define VLA_BIND_CHUNK_H

#include "chunk.h"
#include "module.h"
#include "pilot.h"

/* From an object with the fields of vla_edge.contract.Chunk; 0, or -1 with a Python error set.
 * Any [n, k] float32 array that fits is taken: whether it suits the arm is the reader's to judge. */
int chunk_from_python(PyObject *object, chunk *out);
/* A dict of the same fields; actions as bytes of float32 [n, joints]. */
PyObject *chunk_to_python(const chunk *data);

/* 64 hexadecimal digits; 0, or -1 with a Python error set. */
int digest_from_python(PyObject *text, uint8_t digest[DIGEST_BYTES]);

/* From an object with the fields of vla_edge.runtime.control.control_settings.ControlSettings; 0, or -1 with a Python
 * error set. */
int pilot_config_from_python(PyObject *object, pilot_config *out);
/* ValueError for a configuration the guard refuses. */
void set_guard_config_error(guard_config_error error, int joint);

/* Names of joints as a tuple of texts. */
PyObject *tuple_of_names(const char names[][ARM_NAME_BYTES], int n);
/* Numbers of a fixed array as a tuple. */
PyObject *tuple_of_int32(const int32_t *values, int n);
PyObject *tuple_of_float(const float *values, int n);
/* A sequence of `joints` integers; 0, or -1 with a Python error set. */
int counts_from_python(PyObject *object, int joints, int32_t *counts);
/* dict[name] = value, consuming value (which may be NULL with an error set); 0 or -1. */
int put(PyObject *dict, const char *name, PyObject *value);

#endif
