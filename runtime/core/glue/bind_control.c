/* `_core.control_run` and `_core.StillArm`. */
#include "module.h"
#include "bind_chunk.h"

#include <stdlib.h>
#include <string.h>

#include "control.h"

/* Strings and numbers of the run object; the references keep the strings alive. */
typedef struct {
    PyObject *ring, *state, *record;
} run_paths;

static void release(run_paths *paths)
{
    Py_CLEAR(paths->ring);
    Py_CLEAR(paths->state);
    Py_CLEAR(paths->record);
}

static PyObject *path_of(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name), *bytes = NULL;
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
    if (paths->record == NULL)
        return -1;
    config->ring_path = PyBytes_AS_STRING(paths->ring);
    config->state_path = PyBytes_AS_STRING(paths->state);
    config->record_path = PyBytes_AS_STRING(paths->record);
    config->record_cells = (uint64_t)number_of(run, "record_cells");
    config->socket_fd = (int)number_of(run, "socket_fd");
    config->signal_fd = (int)number_of(run, "signal_fd");
    config->priority = (int)number_of(run, "priority");
    config->shadow = number_of(run, "shadow") != 0;
    config->arm_at_start = number_of(run, "arm_at_start") != 0;
    config->stop_after_ticks = number_of(run, "stop_after_ticks");
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
    if (port != NULL && pilot_config_from_python(settings, &config.pilot) == 0 && config_of(run, &config, &paths) == 0) {
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

/* An arm without a bus: its joints are where the last goals put them. For tests and for timing the loop alone. */
typedef struct {
    PyObject_HEAD
    arm_port port;
    arm_reading reading;
} StillArm;

static arm_result still_read(void *context, int64_t deadline_ns, arm_reading *out)
{
    (void)deadline_ns;
    StillArm *self = context;
    self->reading.time_ns = clock_now_ns();
    *out = self->reading;
    return ARM_OK;
}

static arm_result still_write(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    (void)deadline_ns;
    memcpy(((StillArm *)context)->reading.position, goals, ARM_JOINTS * sizeof goals[0]);
    return ARM_OK;
}

static arm_result still_torque(void *context, bool on, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    (void)context;
    (void)on;
    (void)goals;
    (void)deadline_ns;
    return ARM_OK;
}

static arm_result still_watchdog(void *context, int64_t deadline_ns)
{
    (void)context;
    (void)deadline_ns;
    return ARM_OK;
}

static arm_result still_clear(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    (void)goals;
    return still_watchdog(context, deadline_ns);
}

static int StillArm_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"positions", NULL};
    StillArm *self = (StillArm *)object;
    PyObject *positions;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &positions))
        return -1;
    self->port = (arm_port){self, still_read, still_write, still_torque, still_watchdog, still_clear};
    return counts_from_python(positions, self->reading.position);
}

static void StillArm_dealloc(PyObject *object)
{
    Py_TYPE(object)->tp_free(object);
}

static PyObject *StillArm_port(PyObject *object, void *unused)
{
    (void)unused;
    return PyCapsule_New(&((StillArm *)object)->port, ARM_PORT_CAPSULE, NULL);
}

static PyGetSetDef StillArm_getset[] = {{"port", StillArm_port, NULL, "arm_port for control_run", NULL}, {NULL}};

static PyTypeObject StillArm_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.StillArm",
    .tp_basicsize = sizeof(StillArm),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = StillArm_init,
    .tp_dealloc = StillArm_dealloc,
    .tp_getset = StillArm_getset,
};

static PyObject *answer_ns(PyObject *module, PyObject *period_ns)
{
    (void)module;
    long long period = PyLong_AsLongLong(period_ns);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(control_answer_ns(period));
}

static PyMethodDef functions[] = {
    {"control_answer_ns", answer_ns, METH_O, "control_answer_ns(period_ns): what a tick gives the servos to answer."},
    {"control_run", run_control, METH_VARARGS, "control_run(arm, settings, run): the control loop until it is stopped."},
    {NULL},
};

int bind_control(PyObject *module)
{
    if (PyModule_AddFunctions(module, functions) < 0)
        return -1;
    return module_add_type(module, "StillArm", &StillArm_type);
}
