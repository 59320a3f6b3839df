/* SPDX-License-Identifier: Apache-2.0 */
#include "bind_chunk.h"

#include <string.h>

static const field chunk_fields[] = {
    FIELD(chunk, kind), FIELD(chunk, session), NAMED("bundle_digest", chunk, digest),
    FIELD(chunk, observation_sequence), FIELD(chunk, observation_tick), FIELD(chunk, observation_ns), {0},
};

int chunk_from_python(PyObject *object, chunk *out)
{
    memset(out, 0, sizeof *out);
    if (fields_take(object, chunk_fields, out, 0) < 0)
        return -1;
    PyObject *actions = PyObject_GetAttrString(object, "actions");
    PyObject *view = actions == NULL ? NULL : view_of(actions, "actions", true, false);
    Py_XDECREF(actions);
    if (view == NULL)
        return -1;
    const Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (buffer->ndim != 2) {
        PyErr_SetString(PyExc_ValueError, "actions must be float32 [n, joints]");
    } else if (buffer->shape[0] > CHUNK_ACTIONS_MAX || buffer->shape[1] > CHUNK_JOINTS_MAX ||
               buffer->shape[0] * buffer->shape[1] > CHUNK_VALUES_MAX) {
        PyErr_Format(PyExc_ValueError, "actions [%zd, %zd] do not fit a chunk of %d x %d, %d values", buffer->shape[0],
                     buffer->shape[1], CHUNK_ACTIONS_MAX, CHUNK_JOINTS_MAX, CHUNK_VALUES_MAX);
    } else {
        out->n = (uint32_t)buffer->shape[0];
        out->joints = (uint32_t)buffer->shape[1];
        memcpy(out->actions, buffer->buf, (size_t)buffer->len);
    }
    Py_DECREF(view);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *chunk_to_python(const chunk *data)
{
    static const field sizes[] = {FIELD(chunk, n), FIELD(chunk, joints), {0}};
    const Py_ssize_t bytes = (Py_ssize_t)(data->n * data->joints * sizeof(float));
    PyObject *dict = fields_dict(chunk_fields, data, 0);
    if (fields_put(dict, sizes, data, 0) < 0 ||
        put(dict, "actions", PyBytes_FromStringAndSize((const char *)data->actions, bytes)) < 0)
        Py_CLEAR(dict);
    return dict;
}

/* What differs from joint to joint. */
static int take_limits(PyObject *limits, pilot_config *out)
{
    static const field fields[] = {
        EACH_OF(pilot_config, limits, position_min), EACH_OF(pilot_config, limits, position_max),
        EACH_OF(pilot_config, limits, velocity), EACH_OF(pilot_config, limits, acceleration),
        EACH_OF(pilot_config, limits, jerk), EACH_OF(pilot_config, limits, step),
        EACH_OF(pilot_config, limits, tracking), EACH_OF(pilot_config, limits, scale),
        EACH_OF(pilot_config, limits, offset), EACH_OF(pilot_config, press, gravity),
        EACH_OF(pilot_config, press, stall), EACH_OF(pilot_config, health, temperature),
        EACH_OF(pilot_config, health, voltage_min), EACH_OF(pilot_config, health, voltage_max),
        EACH("rest", pilot_config, schedule.rest_counts), EACH("travel", pilot_config, travel),
        EACH("park_turn", pilot_config, park_turn), EACH("name", pilot_config, names), {0},
    };
    PyObject *fast = limits == NULL ? NULL : PySequence_Fast(limits, "limits must be a sequence");
    if (fast == NULL)
        return -1;
    const Py_ssize_t joints = PySequence_Fast_GET_SIZE(fast);
    if (joints < 1 || joints > ARM_JOINTS_MAX)
        PyErr_Format(PyExc_ValueError, "limits of %zd joints; an arm has 1 to %d", joints, ARM_JOINTS_MAX);
    out->joints = out->schedule.joints = (int32_t)joints;
    for (int i = 0; i < joints && !PyErr_Occurred(); i++)
        (void)fields_take(PySequence_Fast_GET_ITEM(fast, i), fields, out, i);
    Py_DECREF(fast);
    return PyErr_Occurred() ? -1 : 0;
}

int pilot_config_from_python(PyObject *object, pilot_config *out)
{
    static const field fields[] = {
        FIELD(pilot_config, period_ns), FIELD(pilot_config, patience_min_ns), FIELD(pilot_config, patience_max_ns),
        FIELD(pilot_config, reads_latch_ns), FIELD(pilot_config, park_speed), FIELD(pilot_config, stall_ns),
        FIELD(pilot_config, buses), NAMED("session", pilot_config, schedule.session),
        NAMED("blend_actions", pilot_config, schedule.blend_actions), FIELD(pilot_config, action_ns),
        NAMED("bundle_digest", pilot_config, schedule.digest), FIELD(pilot_config, arm_digest),
        FIELD(pilot_config, arm), {0},
    };
    memset(out, 0, sizeof *out);
    out->guard_version = GUARD_VERSION;
    out->rounds_corners = 1;
    if (fields_take(object, fields, out, 0) < 0)
        return -1;
    if (out->action_ns == 0)
        out->action_ns = out->period_ns;
    if (out->period_ns < 1000000 || out->period_ns > 200000000)
        PyErr_SetString(PyExc_ValueError, "the period must be 1 ms to 200 ms");
    else if (out->action_ns < 1000000 || out->action_ns > 10000000000)
        PyErr_SetString(PyExc_ValueError, "actions must stand 1 ms to 10 s apart");
    if (PyErr_Occurred())
        return -1;
    PyObject *limits = PyObject_GetAttrString(object, "limits");
    PyObject *park = take_limits(limits, out) < 0 ? NULL : PyObject_GetAttrString(object, "park");
    out->has_park = park != NULL && park != Py_None;
    if (out->has_park)
        (void)TAKE_EACH(park, out->park, out->joints);
    Py_XDECREF(limits);
    Py_XDECREF(park);
    return PyErr_Occurred() ? -1 : 0;
}

void set_guard_config_error(guard_config_error error, int joint)
{
    PyObject *numbers = Py_BuildValue("(ii)", (int)error, joint);
    if (numbers != NULL)
        PyErr_SetObject(PyExc_ValueError, numbers);
    Py_XDECREF(numbers);
}
