/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.Pilot`: the tick's decision with time as an argument. */
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

static const field input_fields[] = {
    FIELD(pilot_input, command), NAMED("p99_ns", pilot_input, patience_ns), FIELD(pilot_input, plan_then_move),
    FIELD(pilot_input, dropped_through), FIELD(pilot_input, read_result),
    NAMED("reading_ns", pilot_input, reading.time_ns), EACH("alerts", pilot_input, reading.alert),
    FIELD(pilot_input, watchdog), FIELD(pilot_input, unplugged), FIELD(pilot_input, unsent),
    NAMED("finding", pilot_input, finding.kind), NAMED("finding_joint", pilot_input, finding.joint),
    FIELD(pilot_input, unattended), FIELD(pilot_input, damaged), FIELD(pilot_input, writer),
    FIELD(pilot_input, torque_failed), FIELD(pilot_input, setting_refused), FIELD(pilot_input, unguarded), {0},
};

static const field output_fields[] = {
    WORD(pilot_output, state, status_state_name), WORD(pilot_output, reason, status_reason_name),
    FIELD(pilot_output, joint), FIELD(pilot_output, latched), FIELD(pilot_output, answer),
    NAMED("action_sequence", pilot_output, action.sequence), NAMED("action_index", pilot_output, action.index),
    NAMED("verdict_joint", pilot_output, guard.joint), EACH("verdicts", pilot_output, guard.joints),
    EACH("goals", pilot_output, guard.goals), FIELD(pilot_output, write), FIELD(pilot_output, torque),
    FIELD(pilot_output, clear_watchdog), FIELD(pilot_output, reboot), FIELD(pilot_output, done), {0},
};

static PyObject *output_to_python(const pilot_output *output, int joints, PyObject *verdicts)
{
    PyObject *dict = fields_dict(output_fields, output, joints);
    PyObject *action = output->action.due ? TUPLE_OF(output->action.action, joints) : Py_NewRef(Py_None);
    if (put(dict, "action", action) < 0 || put(dict, "chunks", Py_XNewRef(verdicts)) < 0 ||
        put(dict, "verdict", PyUnicode_FromString(status_verdict_name((int32_t)output->guard.verdict))) < 0)
        Py_CLEAR(dict);
    return dict;
}

/* The tick with these chunks between its two halves; a dict, its "chunks" the verdict on each. */
static PyObject *decide(pilot *self, pilot_input *input, PyObject *chunks)
{
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(chunks);
    const int joints = self->config.joints;
    pilot_output output;
    PyObject *verdicts = PyList_New(n), *dict = NULL;
    chunk *data = PyMem_Calloc((size_t)n + 1, sizeof *data);
    if (data == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n && !PyErr_Occurred(); i++)
        if (chunk_from_python(PySequence_Fast_GET_ITEM(chunks, i), &data[i]) == 0)
            input->malformed |= chunk_is_malformed(ring_check(&data[i], (uint32_t)joints));
    if (!PyErr_Occurred()) {
        pilot_begin(self, input, &output);
        for (Py_ssize_t i = 0; i < n; i++) {
            chunk_verdict verdict = ring_check(&data[i], (uint32_t)joints);
            if (verdict == CHUNK_TAKEN)
                verdict = pilot_offer(self, input, &data[i]);
            PyList_SET_ITEM(verdicts, i, PyUnicode_FromString(status_chunk_name((int32_t)verdict)));
        }
        pilot_end(self, input, &output);
        dict = output_to_python(&output, joints, verdicts);
    }
    Py_XDECREF(verdicts);
    PyMem_Free(data);
    return dict;
}

/* tick(tick, now_ns, positions, chunks=(), further fields of pilot_input by name) */
static PyObject *Pilot_tick(PyObject *object, PyObject *args, PyObject *kwargs)
{
    pilot *self = &((Pilot *)object)->pilot;
    const int joints = self->config.joints;
    long long tick, now_ns;
    PyObject *positions, *chunks = NULL;
    if (!PyArg_ParseTuple(args, "LLO|O", &tick, &now_ns, &positions, &chunks))
        return NULL;
    if (tick < 0) {
        PyErr_SetString(PyExc_ValueError, "a tick counts from 0");
        return NULL;
    }
    pilot_input input = {
        .tick = tick,
        .now_ns = now_ns,
        .dropped_through = -1,
        .finding.joint = -1,
        .read_result = positions == Py_None ? ARM_TIMEOUT : ARM_OK,
        .reading.time_ns = now_ns,
    };
    if ((positions != Py_None && TAKE_EACH(positions, input.reading.position, joints) < 0) ||
        fields_take_given(kwargs, input_fields, &input, joints) < 0)
        return NULL;
    input.patience_ns *= 3; /* it was given as p99_ns */
    input.trouble_joint = input.finding.joint;
    PyObject *fast = chunks == NULL ? PyTuple_New(0) : PySequence_Fast(chunks, "chunks must be a sequence");
    PyObject *dict = fast == NULL ? NULL : decide(self, &input, fast);
    Py_XDECREF(fast);
    return dict;
}

static PyObject *Pilot_step_limits(PyObject *object, void *Py_UNUSED(unused))
{
    const guard *self = &((Pilot *)object)->pilot.guard;
    const double unit = self->unit;
    PyObject *list = PyList_New(self->count);
    for (int i = 0; list != NULL && i < self->count; i++) {
        const guard_joint_limits *limits = &self->limits[i];
        PyList_SET_ITEM(list, i, Py_BuildValue("(ddddd)", limits->position_min / unit, limits->position_max / unit,
                                               limits->velocity / unit, limits->acceleration / unit,
                                               limits->jerk / unit));
    }
    return list;
}

static PyMethodDef methods[] = {
    {"tick", (PyCFunction)(void (*)(void))Pilot_tick, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL},
};

static PyMemberDef members[] = {{"rest_ticks", T_INT, offsetof(Pilot, pilot.guard.rest_ticks), READONLY, NULL}, {0}};
static PyGetSetDef attributes[] = {{"step_limits", Pilot_step_limits, NULL, NULL, NULL}, {NULL}};

PyTypeObject Pilot_type = {
    TYPE(Pilot),
    .tp_new = PyType_GenericNew,
    .tp_init = Pilot_init,
    .tp_methods = methods,
    .tp_members = members,
    .tp_getset = attributes,
};
