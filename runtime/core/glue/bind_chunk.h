/* SPDX-License-Identifier: Apache-2.0 */
/* A chunk and the pilot's configuration from Python's dataclasses. */
#pragma once

#include "fields.h"
#include "pilot.h"

/* From an object with the fields of vla_edge.contract.Chunk; 0, or -1 with a Python error set.
 * Any [n, k] float32 array that fits is taken: whether it suits the arm is the reader's to judge. */
int chunk_from_python(PyObject *object, chunk *out);
/* A dict of the same fields; actions as bytes of float32 [n, joints]. */
PyObject *chunk_to_python(const chunk *data);

/* From an object with the fields of vla_edge.runtime.control.control_settings.ControlSettings; 0, or -1 with a Python
 * error set. */
int pilot_config_from_python(PyObject *object, pilot_config *out);
/* ValueError for a configuration the guard refuses. */
void set_guard_config_error(guard_config_error error, int joint);
