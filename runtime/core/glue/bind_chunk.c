/* SPDX-License-Identifier: Apache-2.0 */
#include "bind_chunk.h"

#include <string.h>

int put(PyObject *dict, const char *name, PyObject *value)
{
    if (value == NULL)
        return -1;
    int failed = PyDict_SetItemString(dict, name, value);
    Py_DECREF(value);
    return failed;
}

PyObject *tuple_of_int32(const int32_t *values, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, PyLong_FromLong(values[i]));
    return tuple;
}

PyObject *tuple_of_float(const float *values, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, PyFloat_FromDouble((double)values[i]));
    return tuple;
}

PyObject *tuple_of_names(const char names[][ARM_NAME_BYTES], int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++) {
        char name[ARM_NAME_BYTES + 1] = {0};
        memcpy(name, names[i], ARM_NAME_BYTES);
        if (name[0] == 0)
            PyOS_snprintf(name, sizeof name, "joint_%d", i);
        PyTuple_SET_ITEM(tuple, i, PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace"));
    }
    return tuple;
}

int counts_from_python(PyObject *object, int joints, int32_t *counts)
{
    PyObject *fast = PySequence_Fast(object, "joint counts must be a sequence");
    if (fast == NULL)
        return -1;
    if (PySequence_Fast_GET_SIZE(fast) != joints)
        PyErr_Format(PyExc_ValueError, "%zd joint counts where the arm has %d joints", PySequence_Fast_GET_SIZE(fast),
                     joints);
    for (int i = 0; i < joints && !PyErr_Occurred(); i++)
        counts[i] = (int32_t)PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, i));
    Py_DECREF(fast);
    return PyErr_Occurred() ? -1 : 0;
}

int digest_from_python(PyObject *text, uint8_t digest[DIGEST_BYTES])
{
    Py_ssize_t size;
    const char *hex = PyUnicode_AsUTF8AndSize(text, &size);
    if (hex == NULL)
        return -1;
    for (int i = 0; i < DIGEST_BYTES && size == 2 * DIGEST_BYTES; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        char *end;
        digest[i] = (uint8_t)strtoul(pair, &end, 16);
        if (end != pair + 2)
            size = -1;
    }
    if (size != 2 * DIGEST_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a bundle digest is 64 hexadecimal digits");
        return -1;
    }
    return 0;
}

static long long integer(PyObject *object, const char *name)
{
    PyObject *value = PyErr_Occurred() ? NULL : PyObject_GetAttrString(object, name);
    long long number = value == NULL ? 0 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return number;
}

static double real(PyObject *object, const char *name)
{
    PyObject *value = PyErr_Occurred() ? NULL : PyObject_GetAttrString(object, name);
    double number = value == NULL ? 0 : PyFloat_AsDouble(value);
    Py_XDECREF(value);
    return number;
}

int chunk_from_python(PyObject *object, chunk *out)
{
    memset(out, 0, sizeof *out);
    out->kind = (uint32_t)integer(object, "kind");
    out->session = (uint64_t)integer(object, "session");
    out->observation_sequence = integer(object, "observation_sequence");
    out->observation_tick = integer(object, "observation_tick");
    out->observation_ns = integer(object, "observation_ns");
    if (PyErr_Occurred())
        return -1;
    PyObject *digest = PyObject_GetAttrString(object, "bundle_digest");
    int failed = digest == NULL || digest_from_python(digest, out->digest) < 0;
    Py_XDECREF(digest);
    if (failed)
        return -1;

    PyObject *actions = PyObject_GetAttrString(object, "actions");
    if (actions == NULL)
        return -1;
    Py_buffer buffer;
    failed = PyObject_GetBuffer(actions, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT);
    Py_DECREF(actions);
    if (failed)
        return -1;
    if (buffer.ndim != 2 || buffer.format == NULL || strcmp(buffer.format, "f") != 0) {
        PyErr_SetString(PyExc_ValueError, "actions must be float32 [n, joints]");
        failed = -1;
    } else if (buffer.shape[0] > CHUNK_ACTIONS_MAX || buffer.shape[1] > CHUNK_JOINTS_MAX
               || buffer.shape[0] * buffer.shape[1] > CHUNK_VALUES_MAX) {
        PyErr_Format(PyExc_ValueError, "actions [%zd, %zd] do not fit a chunk of %d x %d, %d values", buffer.shape[0],
                     buffer.shape[1], CHUNK_ACTIONS_MAX, CHUNK_JOINTS_MAX, CHUNK_VALUES_MAX);
        failed = -1;
    } else {
        out->n = (uint32_t)buffer.shape[0];
        out->joints = (uint32_t)buffer.shape[1];
        memcpy(out->actions, buffer.buf, (size_t)buffer.len);
    }
    PyBuffer_Release(&buffer);
    return failed;
}

PyObject *chunk_to_python(const chunk *data)
{
    char digest[2 * DIGEST_BYTES + 1];
    for (int i = 0; i < DIGEST_BYTES; i++)
        PyOS_snprintf(digest + 2 * i, 3, "%02x", data->digest[i]);
    return Py_BuildValue("{s:I,s:K,s:s,s:L,s:L,s:L,s:I,s:I,s:y#}", "kind", data->kind, "session",
                         (unsigned long long)data->session, "bundle_digest", digest, "observation_sequence",
                         (long long)data->observation_sequence, "observation_tick", (long long)data->observation_tick,
                         "observation_ns", (long long)data->observation_ns, "n", data->n, "joints", data->joints,
                         "actions", (const char *)data->actions, (Py_ssize_t)(data->n * data->joints * sizeof(float)));
}

/* A text, cut to what fits; consumes it. */
static int name_from_python(PyObject *text, char *out)
{
    const char *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    if (utf8 != NULL)
        PyOS_snprintf(out, ARM_NAME_BYTES, "%s", utf8);
    Py_XDECREF(text);
    return utf8 == NULL ? -1 : 0;
}

/* Which description these limits are of. */
static int arm_from_python(PyObject *object, pilot_config *out)
{
    PyObject *digest = PyObject_GetAttrString(object, "arm_digest");
    int failed = digest == NULL || digest_from_python(digest, out->arm_digest) < 0;
    Py_XDECREF(digest);
    return failed || name_from_python(PyObject_GetAttrString(object, "arm"), out->arm) < 0 ? -1 : 0;
}

static int limits_from_python(PyObject *object, pilot_config *config, int joint)
{
    config->limits[joint] = (guard_limits){
        .position_min = (int32_t)integer(object, "position_min"),
        .position_max = (int32_t)integer(object, "position_max"),
        .velocity = real(object, "velocity"),
        .acceleration = real(object, "acceleration"),
        .jerk = real(object, "jerk"),
        .step = (int32_t)integer(object, "step"),
        .tracking = (int32_t)integer(object, "tracking"),
        .scale = real(object, "scale"),
        .offset = real(object, "offset"),
    };
    config->schedule.rest_counts[joint] = (int32_t)integer(object, "rest");
    config->press[joint] =
        (press_limits){.gravity = (int32_t)integer(object, "gravity"), .stall = (int32_t)integer(object, "stall")};
    config->health[joint] = (health_limits){
        .temperature = (int32_t)integer(object, "temperature"),
        .voltage_min = (int32_t)integer(object, "voltage_min"),
        .voltage_max = (int32_t)integer(object, "voltage_max"),
    };
    config->travel[joint] = real(object, "travel");
    config->park_turn[joint] = (uint8_t)integer(object, "park_turn");
    return PyErr_Occurred() ? -1 : name_from_python(PyObject_GetAttrString(object, "name"), config->names[joint]);
}

int pilot_config_from_python(PyObject *object, pilot_config *out)
{
    memset(out, 0, sizeof *out);
    out->period_ns = integer(object, "period_ns");
    out->patience_min_ns = integer(object, "patience_min_ns");
    out->patience_max_ns = integer(object, "patience_max_ns");
    out->reads_latch_ns = integer(object, "reads_latch_ns");
    out->park_speed = real(object, "park_speed");
    out->stall_ns = integer(object, "stall_ns");
    out->buses = (int32_t)integer(object, "buses");
    out->schedule.session = (uint64_t)integer(object, "session");
    out->schedule.blend_actions = (int32_t)integer(object, "blend_actions");
    out->action_ns = integer(object, "action_ns");
    out->guard_version = GUARD_VERSION;
    out->rounds_corners = 1;
    if (PyErr_Occurred())
        return -1;
    if (out->period_ns < 1000000 || out->period_ns > 200000000) {
        PyErr_SetString(PyExc_ValueError, "the period must be 1 ms to 200 ms");
        return -1;
    }
    if (out->action_ns == 0)
        out->action_ns = out->period_ns;
    if (out->action_ns < 1000000 || out->action_ns > 10000000000) {
        PyErr_SetString(PyExc_ValueError, "actions must stand 1 ms to 10 s apart");
        return -1;
    }
    PyObject *digest = PyObject_GetAttrString(object, "bundle_digest");
    int failed = digest == NULL || digest_from_python(digest, out->schedule.digest) < 0;
    Py_XDECREF(digest);
    if (failed)
        return -1;
    PyObject *limits = PyObject_GetAttrString(object, "limits");
    PyObject *fast = limits == NULL ? NULL : PySequence_Fast(limits, "limits must be a sequence");
    Py_XDECREF(limits);
    if (fast == NULL)
        return -1;
    Py_ssize_t joints = PySequence_Fast_GET_SIZE(fast);
    failed = joints < 1 || joints > ARM_JOINTS_MAX;
    if (failed)
        PyErr_Format(PyExc_ValueError, "limits of %zd joints; an arm has 1 to %d", joints, ARM_JOINTS_MAX);
    out->joints = out->schedule.joints = (int32_t)joints;
    for (int i = 0; i < joints && !failed; i++)
        failed = limits_from_python(PySequence_Fast_GET_ITEM(fast, i), out, i) < 0;
    Py_DECREF(fast);
    if (failed)
        return -1;
    PyObject *park = PyObject_GetAttrString(object, "park");
    out->has_park = park != NULL && park != Py_None;
    failed = park == NULL || (out->has_park && counts_from_python(park, out->joints, out->park) < 0);
    Py_XDECREF(park);
    return failed || arm_from_python(object, out) < 0 ? -1 : 0;
}

void set_guard_config_error(guard_config_error error, int joint)
{
    PyObject *numbers = Py_BuildValue("(ii)", (int)error, joint);
    if (numbers != NULL)
        PyErr_SetObject(PyExc_ValueError, numbers);
    Py_XDECREF(numbers);
}
