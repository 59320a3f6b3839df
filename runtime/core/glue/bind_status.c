/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.StateReader`: what control tells of itself. */
#include "fields.h"
#include "status.h"

typedef mapped StateReader;

static int open_status(PyObject *self, const char *path)
{
    return status_open(&((StateReader *)self)->file, path, false);
}

static int StateReader_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return mapped_init(object, args, kwargs, open_status);
}

static PyObject *counts_by_name(const uint64_t *values, int n, const char *(*name)(int32_t))
{
    PyObject *dict = PyDict_New();
    for (int i = 0; dict != NULL && i < n; i++)
        if (put(dict, name(i), PyLong_FromUnsignedLongLong(values[i])) < 0)
            Py_CLEAR(dict);
    return dict;
}

#define OF(member) FIELD(status, member)
static const field fields[] = {
    OF(session), OF(pid), OF(tick), OF(tick_ns), OF(period_ns), OF(action_ns), OF(plan_tick),
    OF(reading_tick), OF(reading_ns), OF(joint), OF(rest_ticks), OF(verdict_joint), OF(goal_moved_tick),
    OF(action_sequence), OF(action_index), OF(actions_left), OF(patience_ns), OF(age_ns), OF(ticks), OF(missed),
    OF(moving_ticks), OF(lost_reads), OF(overwritten), OF(minor_faults), OF(major_faults), OF(late_ns), OF(late_max_ns),
    OF(io_ns), OF(io_max_ns), OF(work_max_ns), OF(warm_joint), OF(trouble_joint), OF(trouble_register),
    OF(trouble_wanted), OF(trouble_found), OF(health_reads), OF(writer), OF(arm),
    TRUTH(status, latched), TRUTH(status, shadow), TRUTH(status, torque), TRUTH(status, fifo), TRUTH(status, locked),
    TRUTH(status, unattended), TRUTH(status, unguarded),
    WORD(status, state, status_state_name), WORD(status, reason, status_reason_name),
    WORD(status, verdict, status_verdict_name), NAMED("bundle_digest", status, digest),
    EACH("joints", status, names), EACH("present", status, present), EACH("goals", status, goals),
    EACH("errors", status, error), EACH("temperatures", status, temperature), EACH("voltages", status, voltage),
    EACH("load", status, load), EACH("positions", status, positions), EACH("velocities", status, velocities), {0},
};

static PyObject *StateReader_read(PyObject *object, PyObject *Py_UNUSED(unused))
{
    status s;
    if (!status_read(((StateReader *)object)->file.memory, &s))
        Py_RETURN_NONE;
    s.record[STATUS_PATH_BYTES - 1] = 0;
    PyObject *dict = fields_dict(fields, &s, s.joints >= 1 && s.joints <= ARM_JOINTS_MAX ? (int)s.joints : 0);
    if (put(dict, "record", PyUnicode_DecodeFSDefault(s.record)) < 0 ||
        put(dict, "chunks", counts_by_name(s.chunk_verdicts, CHUNK_VERDICTS, status_chunk_name)) < 0 ||
        put(dict, "verdicts", counts_by_name(s.guard_verdicts, GUARD_VERDICTS, status_verdict_name)) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyMethodDef methods[] = {{"read", StateReader_read, METH_NOARGS, NULL}, {NULL}};

PyTypeObject StateReader_type = {
    TYPE(StateReader),
    .tp_new = PyType_GenericNew,
    .tp_init = StateReader_init,
    .tp_dealloc = mapped_dealloc,
    .tp_methods = methods,
};
