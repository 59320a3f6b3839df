/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.control_run`, and what can be known of a run before it. */
#include "bind_chunk.h"
#include "control.h"

/* A path of the run object, which the list `kept` keeps alive; NULL: it is None, or a Python error is set. */
static const char *path_of(PyObject *run, const char *name, PyObject *kept)
{
    PyObject *value = PyErr_Occurred() ? NULL : PyObject_GetAttrString(run, name), *bytes = NULL;
    const bool given = value != NULL && value != Py_None && PyUnicode_FSConverter(value, &bytes) &&
                       PyList_Append(kept, bytes) == 0;
    const char *path = given ? PyBytes_AS_STRING(bytes) : NULL;
    Py_XDECREF(bytes);
    Py_XDECREF(value);
    return path;
}

static int config_of(PyObject *run, control_config *config, PyObject *kept)
{
    static const field fields[] = {
        FIELD(control_config, record_cells), FIELD(control_config, socket_fd), FIELD(control_config, signal_fd),
        FIELD(control_config, priority), FIELD(control_config, interrupt_ends), FIELD(control_config, shadow),
        FIELD(control_config, arm_at_start), FIELD(control_config, stop_after_ticks),
        FIELD(control_config, park_after_ns), {0},
    };
    config->ring_path = path_of(run, "ring", kept);
    config->state_path = path_of(run, "state", kept);
    config->record_path = path_of(run, "record", kept);
    config->beat_path = path_of(run, "beat", kept);
    if (PyErr_Occurred() || fields_take(run, fields, config, 0) < 0)
        return -1;
    if (config->ring_path == NULL || config->state_path == NULL || config->record_path == NULL)
        PyErr_SetString(PyExc_ValueError, "ring, state and record must be paths");
    else if (config->record_cells < 64 || config->record_cells > 1 << 24)
        PyErr_SetString(PyExc_ValueError, "a record has 64 to 16777216 cells");
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *answer_of(const control_result *result)
{
    switch (result->exit) {
    case CONTROL_BAD_LIMITS:
        set_guard_config_error(result->limits, result->joint);
        return NULL;
    case CONTROL_BAD_FILE:
        errno = result->failed_errno;
        return PyErr_SetFromErrnoWithFilename(PyExc_OSError, result->failed_path);
    case CONTROL_UNPLUGGED:
        return PyUnicode_FromString("unplugged");
    case CONTROL_INTERRUPTED:
        return PyUnicode_FromString("interrupted");
    case CONTROL_STOPPED:
        break;
    }
    return PyUnicode_FromString("stopped");
}

PyObject *call_control_run(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *arm, *settings, *run, *capsule, *answer = NULL;
    if (!PyArg_ParseTuple(args, "OOO", &arm, &settings, &run))
        return NULL;
    control_config config = {0};
    control_result result;
    const arm_port *port = port_of(arm, &capsule);
    PyObject *kept = PyList_New(0);
    control *state = PyMem_RawMalloc(sizeof *state);
    if (state == NULL)
        PyErr_NoMemory();
    if (port != NULL && kept != NULL && state != NULL && pilot_config_from_python(settings, &config.pilot) == 0 &&
        config_of(run, &config, kept) == 0) {
        UNLOCKED(result = control_run(state, &config, port));
        answer = answer_of(&result);
    }
    PyMem_RawFree(state);
    Py_XDECREF(kept);
    Py_XDECREF(capsule);
    return answer;
}

PyObject *call_control_answer_ns(PyObject *Py_UNUSED(module), PyObject *period_ns)
{
    long long period = PyLong_AsLongLong(period_ns);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(control_answer_ns(period));
}

PyObject *call_record_bytes(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long cells;
    int joints;
    return PyArg_ParseTuple(args, "Ki", &cells, &joints) ? PyLong_FromSize_t(record_bytes(cells, joints)) : NULL;
}
