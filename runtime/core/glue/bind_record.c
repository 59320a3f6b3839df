/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.RecordReader`: ticks and chunks of a flight record, and its replay. */
#include "bind_chunk.h"
#include "record.h"
#include "status.h"

typedef struct {
    PyObject_HEAD
    record record; /* begins with its file, as `mapped` */
} RecordReader;
_Static_assert(offsetof(RecordReader, record.file) == offsetof(mapped, file), "a mapped file");

static int open_record(PyObject *object, const char *path)
{
    return record_open(&((RecordReader *)object)->record, path);
}

static int RecordReader_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return mapped_init(object, args, kwargs, open_record);
}

#define OF(member) FIELD(record_tick, member)
static const field tick_fields[] = {
    OF(tick), OF(now_ns), OF(reading_ns), OF(action_sequence), OF(action_index), OF(late_ns), OF(read_ns), OF(write_ns),
    OF(work_ns), OF(read_result), OF(joint), OF(verdict_joint), OF(command), OF(answer), OF(torque), OF(finding),
    OF(finding_joint), TRUTH(record_tick, latched), TRUTH(record_tick, due), TRUTH(record_tick, write),
    TRUTH(record_tick, plan_then_move), WORD(record_tick, state, status_state_name),
    WORD(record_tick, reason, status_reason_name), WORD(record_tick, verdict, status_verdict_name),
    EACH("verdicts", record_tick, verdicts), EACH("position", record_tick, position),
    EACH("velocity", record_tick, velocity), EACH("goals", record_tick, goals), EACH("action", record_tick, action),
    {0},
};

static PyObject *tick_to_python(const record_tick *tick, const pilot_config *config)
{
    PyObject *dict = fields_dict(tick_fields, tick, config->joints);
    if (put(dict, "joints", TUPLE_OF(config->names, config->joints)) < 0)
        Py_CLEAR(dict);
    return dict;
}

/* cell(index) -> ("tick", dict) | ("chunk", dict) | ("actions", None) | None when it is gone or damaged. */
static PyObject *RecordReader_cell(PyObject *object, PyObject *argument)
{
    const record *self = &((RecordReader *)object)->record;
    unsigned long long index = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    record_cell cell;
    chunk data;
    record_tick tick;
    if (!record_get(self, index, &cell))
        Py_RETURN_NONE;
    switch (cell.kind) {
    case RECORD_TICK:
        tick = record_tick_in(self, &cell);
        return Py_BuildValue("(sN)", "tick", tick_to_python(&tick, &self->config));
    case RECORD_CHUNK:
        if (!record_get_chunk(self, index, &data))
            Py_RETURN_NONE;
        return Py_BuildValue("(sN)", "chunk", chunk_to_python(&data));
    default:
        return Py_BuildValue("(sO)", "actions", Py_None);
    }
}

static PyObject *RecordReader_range(PyObject *object, PyObject *Py_UNUSED(unused))
{
    uint64_t first, end;
    record_range(&((RecordReader *)object)->record, &first, &end);
    return Py_BuildValue("(KK)", (unsigned long long)first, (unsigned long long)end);
}

static PyObject *RecordReader_header(PyObject *object, PyObject *Py_UNUSED(unused))
{
    static const field of_record[] = {
        FIELD(record, version), NAMED("guard_version", record, config.guard_version),
        NAMED("action_ns", record, config.action_ns), NAMED("period_ns", record, config.period_ns),
        NAMED("session", record, config.schedule.session), NAMED("arm", record, config.arm),
        NAMED("arm_digest", record, config.arm_digest), EACH("joints", record, config.names), {0},
    };
    static const field of_header[] = {
        FIELD(record_header, wall_minus_monotonic_ns), TRUTH(record_header, shadow), {0},
    };
    const record *self = &((RecordReader *)object)->record;
    const int joints = self->config.joints;
    PyObject *dict = fields_dict(of_record, self, joints), *maps = PyTuple_New(joints);
    for (int i = 0; maps != NULL && i < joints; i++)
        PyTuple_SET_ITEM(maps, i, Py_BuildValue("(dd)", self->config.limits[i].scale, self->config.limits[i].offset));
    if (put(dict, "maps", maps) < 0 || fields_put(dict, of_header, self->header, joints) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *RecordReader_replay(PyObject *object, PyObject *Py_UNUSED(unused))
{
    static const field fields[] = {
        FIELD(record_replay_result, ticks), FIELD(record_replay_result, chunks), FIELD(record_replay_result, damaged),
        FIELD(record_replay_result, differing), FIELD(record_replay_result, first_tick),
        FIELD(record_replay_result, differing_at), {0},
    };
    pilot *scratch = PyMem_Malloc(sizeof *scratch);
    if (scratch == NULL)
        return PyErr_NoMemory();
    record_replay_result result = record_replay(&((RecordReader *)object)->record, scratch);
    PyMem_Free(scratch);
    return fields_dict(fields, &result, 0);
}

static PyMethodDef methods[] = {
    {"cell", RecordReader_cell, METH_O, NULL},
    {"range", RecordReader_range, METH_NOARGS, NULL},
    {"header", RecordReader_header, METH_NOARGS, NULL},
    {"replay", RecordReader_replay, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject RecordReader_type = {
    TYPE(RecordReader),
    .tp_new = PyType_GenericNew,
    .tp_init = RecordReader_init,
    .tp_dealloc = mapped_dealloc,
    .tp_methods = methods,
};
