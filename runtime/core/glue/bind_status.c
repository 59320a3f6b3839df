/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.StateReader`: what control tells of itself. */
#include "module.h"
#include "bind_chunk.h"

#include "status.h"

typedef struct {
    PyObject_HEAD
    shared_file file;
} StateReader;

static int StateReader_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    StateReader *self = (StateReader *)object;
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    shared_close(&self->file);
    int failure = status_open(&self->file, PyBytes_AS_STRING(path), false);
    if (failure != 0) {
        errno = failure;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    }
    Py_DECREF(path);
    return failure ? -1 : 0;
}

static void StateReader_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    shared_close(&((StateReader *)object)->file);
    type->tp_free(object);
}

typedef const char *(*naming)(int32_t);

static PyObject *counts_by_name(const uint64_t *values, int n, naming name)
{
    PyObject *dict = PyDict_New();
    for (int i = 0; dict != NULL && i < n; i++)
        if (put(dict, name(i), PyLong_FromUnsignedLongLong(values[i])) < 0)
            Py_CLEAR(dict);
    return dict;
}

static int put_numbers(PyObject *dict, const status *s)
{
    const struct {
        const char *name;
        long long value;
    } numbers[] = {
        {"session", (long long)s->session},
        {"pid", (long long)s->pid},
        {"tick", s->tick},
        {"tick_ns", s->tick_ns},
        {"period_ns", s->period_ns},
        {"action_ns", s->action_ns},
        {"t0_ns", s->t0_ns},
        {"plan_tick", s->plan_tick},
        {"reading_tick", s->reading_tick},
        {"reading_ns", s->reading_ns},
        {"joint", s->joint},
        {"rest_ticks", s->rest_ticks},
        {"verdict_joint", s->verdict_joint},
        {"goal_moved_tick", s->goal_moved_tick},
        {"action_sequence", s->action_sequence},
        {"action_index", s->action_index},
        {"actions_left", s->actions_left},
        {"patience_ns", s->patience_ns},
        {"age_ns", s->age_ns},
        {"ticks", (long long)s->ticks},
        {"missed", (long long)s->missed},
        {"moving_ticks", (long long)s->moving_ticks},
        {"lost_reads", (long long)s->lost_reads},
        {"overwritten", (long long)s->overwritten},
        {"minor_faults", (long long)s->minor_faults},
        {"major_faults", (long long)s->major_faults},
        {"late_ns", s->late_ns},
        {"late_max_ns", s->late_max_ns},
        {"io_ns", s->io_ns},
        {"io_max_ns", s->io_max_ns},
        {"work_max_ns", s->work_max_ns},
        {"warm_joint", s->warm_joint},
        {"trouble_joint", s->trouble_joint},
        {"trouble_register", s->trouble_register},
        {"trouble_wanted", s->trouble_wanted},
        {"trouble_found", s->trouble_found},
        {"health_reads", (long long)s->health_reads},
        {"writer", (long long)s->writer},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (put(dict, numbers[i].name, PyLong_FromLongLong(numbers[i].value)) < 0)
            return -1;
    const struct {
        const char *name;
        int32_t value;
    } flags[] = {{"latched", s->latched}, {"shadow", s->shadow},         {"torque", s->torque},      {"fifo", s->fifo},
                 {"locked", s->locked},   {"unattended", s->unattended}, {"unguarded", s->unguarded}};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (put(dict, flags[i].name, PyBool_FromLong(flags[i].value)) < 0)
            return -1;
    return 0;
}

static PyObject *StateReader_read(PyObject *object, PyObject *unused)
{
    (void)unused;
    status s;
    if (!status_read(((StateReader *)object)->file.memory, &s))
        Py_RETURN_NONE;
    char digest[2 * DIGEST_BYTES + 1];
    for (int i = 0; i < DIGEST_BYTES; i++)
        PyOS_snprintf(digest + 2 * i, 3, "%02x", s.digest[i]);
    s.record[STATUS_PATH_BYTES - 1] = 0;
    int joints = s.joints >= 1 && s.joints <= ARM_JOINTS_MAX ? (int)s.joints : 0;
    PyObject *dict = PyDict_New();
    if (dict == NULL)
        return NULL;
    if (put_numbers(dict, &s) < 0 || put(dict, "state", PyUnicode_FromString(status_state_name(s.state))) < 0
        || put(dict, "reason", PyUnicode_FromString(status_reason_name(s.reason))) < 0
        || put(dict, "verdict", PyUnicode_FromString(status_verdict_name(s.verdict))) < 0
        || put(dict, "bundle_digest", PyUnicode_FromString(digest)) < 0
        || put(dict, "record", PyUnicode_DecodeFSDefault(s.record)) < 0
        || put(dict, "arm", PyUnicode_FromFormat("%.24s", s.arm)) < 0
        || put(dict, "joints", tuple_of_names(s.names, joints)) < 0
        || put(dict, "present", tuple_of_int32(s.present, joints)) < 0
        || put(dict, "goals", tuple_of_int32(s.goals, joints)) < 0
        || put(dict, "errors", tuple_of_int32(s.error, joints)) < 0
        || put(dict, "temperatures", tuple_of_int32(s.temperature, joints)) < 0
        || put(dict, "voltages", tuple_of_int32(s.voltage, joints)) < 0
        || put(dict, "load", tuple_of_int32(s.load, joints)) < 0
        || put(dict, "positions", tuple_of_float(s.positions, joints)) < 0
        || put(dict, "velocities", tuple_of_float(s.velocities, joints)) < 0
        || put(dict, "chunks", counts_by_name(s.chunk_verdicts, CHUNK_VERDICTS, status_chunk_name)) < 0
        || put(dict, "verdicts", counts_by_name(s.guard_verdicts, GUARD_VERDICTS, status_verdict_name)) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyMethodDef StateReader_methods[] = {
    {"read", StateReader_read, METH_NOARGS, "The newest status as a dict, None before the first."},
    {NULL},
};

static PyTypeObject StateReader_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.StateReader",
    .tp_basicsize = sizeof(StateReader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = StateReader_init,
    .tp_dealloc = StateReader_dealloc,
    .tp_methods = StateReader_methods,
};

int bind_status(PyObject *module)
{
    return module_add_type(module, "StateReader", &StateReader_type);
}
