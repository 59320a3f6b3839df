/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.control_run`. */
#include "module.h"
#include "bind_chunk.h"

#include <stdlib.h>
#include <string.h>

#include "control.h"

/* Strings and numbers of the run object; the references keep the strings alive. */
typedef struct {
    PyObject *ring, *state, *record, *beat;
} run_paths;

static void release(run_paths *paths)
{
    Py_CLEAR(paths->ring);
    Py_CLEAR(paths->state);
    Py_CLEAR(paths->record);
    Py_CLEAR(paths->beat);
}

/* Bytes, or None where the attribute is None. */
static PyObject *path_of(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name), *bytes = NULL;
    if (value == Py_None)
        return value;
    if (value != NULL && !PyUnicode_FSConverter(value, &bytes))
        bytes = NULL;
    Py_XDECREF(value);
    return bytes;
}

static long long number_of(PyObject *object, const char *name)
{
    PyObject *value = PyErr_Occurred() ? NULL : PyObject_GetAttrString(object, name);
    long long number = value == NULL ? 0 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return number;
}

static int config_of(PyObject *run, control_config *config, run_paths *paths)
{
    paths->ring = path_of(run, "ring");
    paths->state = paths->ring == NULL ? NULL : path_of(run, "state");
    paths->record = paths->state == NULL ? NULL : path_of(run, "record");
    paths->beat = paths->record == NULL ? NULL : path_of(run, "beat");
    if (paths->beat == NULL)
        return -1;
    if (!PyBytes_Check(paths->ring) || !PyBytes_Check(paths->state) || !PyBytes_Check(paths->record)) {
        PyErr_SetString(PyExc_ValueError, "ring, state and record must be paths");
        return -1;
    }
    config->beat_path = paths->beat == Py_None ? NULL : PyBytes_AS_STRING(paths->beat);
    config->ring_path = PyBytes_AS_STRING(paths->ring);
    config->state_path = PyBytes_AS_STRING(paths->state);
    config->record_path = PyBytes_AS_STRING(paths->record);
    config->record_cells = (uint64_t)number_of(run, "record_cells");
    config->socket_fd = (int)number_of(run, "socket_fd");
    config->signal_fd = (int)number_of(run, "signal_fd");
    config->priority = (int)number_of(run, "priority");
    config->interrupt_ends = number_of(run, "interrupt_ends") != 0;
    config->shadow = number_of(run, "shadow") != 0;
    config->arm_at_start = number_of(run, "arm_at_start") != 0;
    config->stop_after_ticks = number_of(run, "stop_after_ticks");
    config->park_after_ns = number_of(run, "park_after_ns");
    if (!PyErr_Occurred() && (config->record_cells < 64 || config->record_cells > 1 << 24))
        PyErr_SetString(PyExc_ValueError, "a record has 64 to 16777216 cells");
    return PyErr_Occurred() ? -1 : 0;
}

static const arm_port *port_of(PyObject *arm)
{
    PyObject *capsule = PyObject_GetAttrString(arm, "port");
    const arm_port *port = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, ARM_PORT_CAPSULE);
    Py_XDECREF(capsule); /* the arm object keeps what it points to */
    return port;
}

static PyObject *told(const control_result *result)
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

static PyObject *run_control(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *arm, *settings, *run;
    if (!PyArg_ParseTuple(args, "OOO", &arm, &settings, &run))
        return NULL;
    control_config config = {0};
    run_paths paths = {0};
    PyObject *answer = NULL;
    const arm_port *port = port_of(arm);
    control *state = NULL;
    if (port != NULL && pilot_config_from_python(settings, &config.pilot) == 0 &&
        config_of(run, &config, &paths) == 0) {
        state = malloc(sizeof *state);
        if (state == NULL) {
            PyErr_NoMemory();
        } else {
            control_result result;
            Py_BEGIN_ALLOW_THREADS
            result = control_run(state, &config, port);
            Py_END_ALLOW_THREADS
            answer = told(&result);
        }
    }
    free(state);
    release(&paths);
    return answer;
}

static PyObject *answer_ns(PyObject *module, PyObject *period_ns)
{
    (void)module;
    long long period = PyLong_AsLongLong(period_ns);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(control_answer_ns(period));
}

static PyObject *bytes_of_record(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long cells;
    int joints;
    return PyArg_ParseTuple(args, "Ki", &cells, &joints) ? PyLong_FromSize_t(record_bytes(cells, joints)) : NULL;
}

static PyMethodDef functions[] = {
    {"record_bytes", bytes_of_record, METH_VARARGS, "record_bytes(cells, joints): size of a flight record."},
    {"control_answer_ns", answer_ns, METH_O, "control_answer_ns(period_ns): what a tick gives the servos to answer."},
    {"control_run", run_control, METH_VARARGS,
     "control_run(arm, settings, run): the control loop until it is stopped."},
    {NULL},
};

int bind_control(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
