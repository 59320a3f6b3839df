/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.RecordReader`: ticks and chunks of a flight record, and its replay. */
#include "module.h"
#include "bind_chunk.h"

#include <string.h>

#include "command.h"
#include "record.h"
#include "status.h"

typedef struct {
    PyObject_HEAD
    record record;
} RecordReader;

static int RecordReader_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    RecordReader *self = (RecordReader *)object;
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    record_close(&self->record);
    int failure = record_open(&self->record, PyBytes_AS_STRING(path));
    if (failure != 0) {
        errno = failure;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    }
    Py_DECREF(path);
    return failure ? -1 : 0;
}

static void RecordReader_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    record_close(&((RecordReader *)object)->record);
    type->tp_free(object);
}

static PyObject *tick_to_python(const record_tick *tick, const pilot_config *config)
{
    PyObject *dict = Py_BuildValue("{s:L,s:L,s:L,s:L,s:i,s:i,s:i,s:i,s:i,s:i}", "tick", (long long)tick->tick, "now_ns",
                                   (long long)tick->now_ns, "reading_ns", (long long)tick->reading_ns,
                                   "action_sequence", (long long)tick->action_sequence, "action_index",
                                   tick->action_index, "late_ns", tick->late_ns, "read_ns", tick->read_ns, "write_ns",
                                   tick->write_ns, "work_ns", tick->work_ns, "read_result", (int)tick->read_result);
    if (dict == NULL)
        return NULL;
    const int joints = config->joints;
    int32_t verdicts[ARM_JOINTS_MAX];
    for (int i = 0; i < joints; i++)
        verdicts[i] = tick->verdicts[i];
    if (put(dict, "state", PyUnicode_FromString(status_state_name(tick->state))) < 0 ||
        put(dict, "reason", PyUnicode_FromString(status_reason_name(tick->reason))) < 0 ||
        put(dict, "joint", PyLong_FromLong(tick->joint)) < 0 ||
        put(dict, "latched", PyBool_FromLong(tick->latched)) < 0 || put(dict, "due", PyBool_FromLong(tick->due)) < 0 ||
        put(dict, "write", PyBool_FromLong(tick->write)) < 0 ||
        put(dict, "verdict", PyUnicode_FromString(status_verdict_name(tick->verdict))) < 0 ||
        put(dict, "verdict_joint", PyLong_FromLong(tick->verdict_joint)) < 0 ||
        put(dict, "verdicts", tuple_of_int32(verdicts, joints)) < 0 ||
        put(dict, "plan_then_move", PyBool_FromLong(tick->plan_then_move)) < 0 ||
        put(dict, "command", PyLong_FromLong(tick->command)) < 0 ||
        put(dict, "answer", PyLong_FromLong(tick->answer)) < 0 ||
        put(dict, "torque", PyLong_FromLong(tick->torque)) < 0 ||
        put(dict, "finding", PyLong_FromLong(tick->finding)) < 0 ||
        put(dict, "finding_joint", PyLong_FromLong(tick->finding_joint)) < 0 ||
        put(dict, "joints", tuple_of_names(config->names, joints)) < 0 ||
        put(dict, "position", tuple_of_int32(tick->position, joints)) < 0 ||
        put(dict, "velocity", tuple_of_int32(tick->velocity, joints)) < 0 ||
        put(dict, "goals", tuple_of_int32(tick->goals, joints)) < 0 ||
        put(dict, "action", tuple_of_float(tick->action, joints)) < 0)
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

static PyObject *RecordReader_range(PyObject *object, PyObject *unused)
{
    (void)unused;
    uint64_t first, end;
    record_range(&((RecordReader *)object)->record, &first, &end);
    return Py_BuildValue("(KK)", (unsigned long long)first, (unsigned long long)end);
}

static PyObject *RecordReader_header(PyObject *object, PyObject *unused)
{
    (void)unused;
    const record *self = &((RecordReader *)object)->record;
    const record_header *header = self->header;
    PyObject *dict = Py_BuildValue("{s:i,s:i,s:L,s:L,s:L,s:K,s:O}", "version", self->version, "guard_version",
                                   self->config.guard_version, "action_ns", (long long)self->config.action_ns,
                                   "wall_minus_monotonic_ns", (long long)header->wall_minus_monotonic_ns,
                                   "period_ns", (long long)self->config.period_ns, "session",
                                   (unsigned long long)self->config.schedule.session, "shadow",
                                   header->shadow ? Py_True : Py_False);
    PyObject *maps = PyTuple_New(self->config.joints);
    for (int i = 0; maps != NULL && i < self->config.joints; i++) {
        const guard_limits *limits = &self->config.limits[i];
        PyTuple_SET_ITEM(maps, i, Py_BuildValue("(dd)", limits->scale, limits->offset));
    }
    char digest[2 * DIGEST_BYTES + 1];
    for (int i = 0; i < DIGEST_BYTES; i++)
        PyOS_snprintf(digest + 2 * i, 3, "%02x", self->config.arm_digest[i]);
    if (dict != NULL && (put(dict, "maps", maps) < 0 ||
                         put(dict, "joints", tuple_of_names(self->config.names, self->config.joints)) < 0 ||
                         put(dict, "arm", PyUnicode_FromFormat("%.24s", self->config.arm)) < 0 ||
                         put(dict, "arm_digest", PyUnicode_FromString(digest)) < 0))
        Py_CLEAR(dict);
    return dict;
}

static PyObject *RecordReader_replay(PyObject *object, PyObject *unused)
{
    (void)unused;
    pilot *scratch = PyMem_Malloc(sizeof *scratch);
    if (scratch == NULL)
        return PyErr_NoMemory();
    record_replay_result result = record_replay(&((RecordReader *)object)->record, scratch);
    PyMem_Free(scratch);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:L,s:L}", "ticks", (unsigned long long)result.ticks, "chunks",
                         (unsigned long long)result.chunks, "damaged", (unsigned long long)result.damaged, "differing",
                         (unsigned long long)result.differing, "first_tick", (long long)result.first_tick,
                         "differing_at", (long long)result.differing_at);
}

static PyMethodDef RecordReader_methods[] = {
    {"cell", RecordReader_cell, METH_O, "One cell by its index."},
    {"range", RecordReader_range, METH_NOARGS, "Oldest index, and one behind the newest."},
    {"header", RecordReader_header, METH_NOARGS, "Times and session."},
    {"replay", RecordReader_replay, METH_NOARGS, "Compute all goals again and compare."},
    {NULL},
};

static PyTypeObject RecordReader_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.RecordReader",
    .tp_basicsize = sizeof(RecordReader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = RecordReader_init,
    .tp_dealloc = RecordReader_dealloc,
    .tp_methods = RecordReader_methods,
};

int bind_record(PyObject *module)
{
    return module_add_type(module, "RecordReader", &RecordReader_type);
}
