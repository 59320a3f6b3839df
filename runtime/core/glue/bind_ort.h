/* SPDX-License-Identifier: Apache-2.0 */
/* What bind_flow.c takes from bind_ort.c. */
#ifndef VLA_BIND_ORT_H
#define VLA_BIND_ORT_H

#include "flow.h"
#include "module.h"

/* The graph of an OrtBinding, to be run without the interpreter; the object must
 * stay alive. Returns -1 with TypeError set for another object. */
int bind_ort_graph(PyObject *binding, flow_graph *graph);

/* Why the last run of a graph made by bind_ort_graph failed. */
const char *bind_ort_message(const flow_graph *graph);

#endif
