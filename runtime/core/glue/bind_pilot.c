/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.Pilot` and `_core.Guard`: the tick's decision and the safety filter with time as an argument. */
#include "module.h"
#include "bind_chunk.h"

#include "ring.h"
#include "status.h"

typedef struct {
    PyObject_HEAD
    pilot pilot;
} Pilot;

static int Pilot_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"settings", NULL};
    PyObject *settings;
    pilot_config config;
    int joint;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &settings) ||
        pilot_config_from_python(settings, &config) < 0)
        return -1;
    guard_config_error error = pilot_init(&((Pilot *)object)->pilot, &config, &joint);
    if (error != GUARD_CONFIG_OK)
        set_guard_config_error(error, joint);
    return error == GUARD_CONFIG_OK ? 0 : -1;
}

static void Pilot_dealloc(PyObject *object)
{
    Py_TYPE(object)->tp_free(object);
}

/* Offers each chunk of a sequence; a list of verdict names. */
static PyObject *offer_all(pilot *self, pilot_input *input, const chunk *chunks, const chunk_verdict *checked,
                           Py_ssize_t n)
{
    PyObject *names = PyList_New(n);
    for (Py_ssize_t i = 0; names != NULL && i < n; i++) {
        chunk_verdict verdict = checked[i] == CHUNK_TAKEN ? pilot_offer(self, input, &chunks[i]) : checked[i];
        PyObject *name = PyUnicode_FromString(status_chunk_name(verdict));
        if (name == NULL)
            Py_CLEAR(names);
        else
            PyList_SET_ITEM(names, i, name);
    }
    return names;
}

static PyObject *output_to_python(const pilot_output *output, int n, PyObject *verdicts)
{
    PyObject *dict = PyDict_New();
    if (dict == NULL)
        return NULL;
    int32_t joints[ARM_JOINTS_MAX];
    for (int i = 0; i < n; i++)
        joints[i] = output->guard.joints[i];
    PyObject *action = output->action.due ? tuple_of_float(output->action.action, n) : Py_NewRef(Py_None);
    if (put(dict, "state", PyUnicode_FromString(status_state_name(output->state))) < 0 ||
        put(dict, "reason", PyUnicode_FromString(status_reason_name(output->reason))) < 0 ||
        put(dict, "joint", PyLong_FromLong(output->joint)) < 0 ||
        put(dict, "latched", PyBool_FromLong(output->latched)) < 0 ||
        put(dict, "answer", PyLong_FromLong(output->answer)) < 0 || put(dict, "action", action) < 0 ||
        put(dict, "action_sequence", PyLong_FromLongLong(output->action.sequence)) < 0 ||
        put(dict, "action_index", PyLong_FromLong(output->action.index)) < 0 ||
        put(dict, "verdict", PyUnicode_FromString(status_verdict_name(output->guard.verdict))) < 0 ||
        put(dict, "verdict_joint", PyLong_FromLong(output->guard.joint)) < 0 ||
        put(dict, "verdicts", tuple_of_int32(joints, n)) < 0 ||
        put(dict, "goals", tuple_of_int32(output->guard.goals, n)) < 0 ||
        put(dict, "write", PyBool_FromLong(output->write)) < 0 ||
        put(dict, "torque", PyLong_FromLong(output->torque)) < 0 ||
        put(dict, "clear_watchdog", PyBool_FromLong(output->clear_watchdog)) < 0 ||
        put(dict, "reboot", PyLong_FromUnsignedLong(output->reboot)) < 0 ||
        put(dict, "done", PyBool_FromLong(output->done)) < 0 || put(dict, "chunks", Py_NewRef(verdicts)) < 0)
        Py_CLEAR(dict);
    return dict;
}

static PyObject *Pilot_tick(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tick",           "now_ns",          "positions",   "chunks",     "command", "p99_ns",
                            "plan_then_move", "dropped_through", "read_result", "reading_ns", "alerts",  "watchdog",
                            "unplugged",      "unsent",          "finding",     "unattended", "damaged", "writer",
                            "torque_failed",  "setting_refused", "unguarded",   NULL};
    pilot *self = &((Pilot *)object)->pilot;
    const int joints = self->config.joints;
    long long tick, now_ns, p99_ns = 0, dropped_through = -1, reading_ns = -1;
    PyObject *positions, *chunks = NULL, *alerts = NULL;
    int command = COMMAND_NONE, plan_then_move = 0, read_result = -1, watchdog = 0, unplugged = 0, unsent = 0,
        unattended = 0, damaged = 0, torque_failed = 0, setting_refused = 0, unguarded = 0;
    health_finding finding = {.joint = -1};
    unsigned long long writer = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLO|OiLpLiLOppp(ii)ppKppp", names, &tick, &now_ns, &positions,
                                     &chunks, &command, &p99_ns, &plan_then_move, &dropped_through, &read_result,
                                     &reading_ns, &alerts, &watchdog, &unplugged, &unsent, &finding.kind,
                                     &finding.joint, &unattended, &damaged, &writer, &torque_failed, &setting_refused,
                                     &unguarded))
        return NULL;
    if (tick < 0) {
        PyErr_SetString(PyExc_ValueError, "a tick counts from 0");
        return NULL;
    }
    pilot_input input = {
        .tick = tick,
        .now_ns = now_ns,
        .command = (pilot_command)command,
        .patience_ns = 3 * p99_ns,
        .plan_then_move = plan_then_move,
        .dropped_through = dropped_through,
        .watchdog = watchdog,
        .unplugged = unplugged,
        .unsent = unsent,
        .finding = finding,
        .unattended = unattended,
        .damaged = damaged,
        .writer = writer,
        .torque_failed = torque_failed,
        .setting_refused = setting_refused,
        .unguarded = unguarded,
        .trouble_joint = finding.joint,
        .read_result = read_result >= 0       ? (arm_result)read_result
                       : positions == Py_None ? ARM_TIMEOUT
                                              : ARM_OK,
        .reading.time_ns = reading_ns >= 0 ? reading_ns : now_ns,
    };
    if (positions != Py_None && counts_from_python(positions, joints, input.reading.position) < 0)
        return NULL;
    int32_t alert[ARM_JOINTS_MAX] = {0};
    if (alerts != NULL && alerts != Py_None && counts_from_python(alerts, joints, alert) < 0)
        return NULL;
    for (int i = 0; i < joints; i++)
        input.reading.alert[i] = alert[i] != 0;

    PyObject *fast = chunks == NULL ? PyTuple_New(0) : PySequence_Fast(chunks, "chunks must be a sequence");
    if (fast == NULL)
        return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(fast);
    chunk *data = PyMem_Calloc((size_t)n + 1, sizeof *data);
    chunk_verdict *checked = PyMem_Calloc((size_t)n + 1, sizeof *checked);
    PyObject *result = NULL, *verdicts = NULL;
    if (data == NULL || checked == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n && !PyErr_Occurred(); i++) {
        if (chunk_from_python(PySequence_Fast_GET_ITEM(fast, i), &data[i]) < 0)
            break;
        checked[i] = ring_check(&data[i], (uint32_t)joints);
        input.malformed = input.malformed || chunk_is_malformed(checked[i]);
    }
    if (!PyErr_Occurred()) {
        pilot_output output;
        pilot_begin(self, &input, &output);
        verdicts = offer_all(self, &input, data, checked, n);
        pilot_end(self, &input, &output);
        if (verdicts != NULL)
            result = output_to_python(&output, joints, verdicts);
    }
    Py_XDECREF(verdicts);
    Py_DECREF(fast);
    PyMem_Free(data);
    PyMem_Free(checked);
    return result;
}

static PyObject *Pilot_rest_ticks(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((Pilot *)object)->pilot.guard.rest_ticks);
}

static PyObject *Pilot_step_limits(PyObject *object, void *unused)
{
    (void)unused;
    const guard *self = &((Pilot *)object)->pilot.guard;
    PyObject *list = PyList_New(self->count);
    for (int i = 0; list != NULL && i < self->count; i++) {
        const guard_joint_limits *limits = &self->limits[i];
        double unit = self->unit;
        PyObject *row = Py_BuildValue("(ddddd)", limits->position_min / unit, limits->position_max / unit,
                                      limits->velocity / unit, limits->acceleration / unit, limits->jerk / unit);
        if (row == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, row);
    }
    return list;
}

static PyMethodDef Pilot_methods[] = {
    {"tick", (PyCFunction)(void (*)(void))Pilot_tick, METH_VARARGS | METH_KEYWORDS, "Decide one tick."},
    {NULL},
};

static PyGetSetDef Pilot_getset[] = {
    {"rest_ticks", Pilot_rest_ticks, NULL, "Ticks the brake needs at most.", NULL},
    {"step_limits", Pilot_step_limits, NULL,
     "Per joint: soft minimum and maximum, and counts a tick, a tick^2, a tick^3.", NULL},
    {NULL},
};

static PyTypeObject Pilot_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.Pilot",
    .tp_basicsize = sizeof(Pilot),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = Pilot_init,
    .tp_dealloc = Pilot_dealloc,
    .tp_methods = Pilot_methods,
    .tp_getset = Pilot_getset,
};

int bind_pilot(PyObject *module)
{
    return module_add_type(module, "Pilot", &Pilot_type);
}
