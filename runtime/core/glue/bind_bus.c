/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.ServoArm`: the servo bus and the servos of an arm for Python's slow path.
 *
 * Verdicts are returned, not raised: the callers know joint names and fixes. The
 * lock is dropped around every wait, so other threads run while the bus answers.
 * Attribute `port` hands the same bus to the control loop as an arm_port.
 */
#include "module.h"
#include "bind_chunk.h"

#include "feetech.h"
#include "packet.h"
#include "serial.h"
#include "servo_arm.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    servo_arm arm;
    arm_port port;
    int fds[SERVO_BUSES_MAX]; /* -1: closed, or none */
} ServoArm;

static int64_t deadline_after(double timeout_s)
{
    if (!(timeout_s > 0))
        timeout_s = 0;
    return serial_now_ns() + (int64_t)(timeout_s < 60 ? timeout_s * 1e9 : 60e9);
}

static int is_open(const ServoArm *self)
{
    if (self->fds[0] >= 0)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the bus is closed");
    return 0;
}

/* A bus of an open arm by its number; NULL: it has none such. */
static bus *bus_numbered(ServoArm *self, int number)
{
    if (number >= 0 && number < servo_buses(&self->arm.is))
        return &self->arm.buses[number];
    PyErr_Format(PyExc_ValueError, "no bus %d", number);
    return NULL;
}

static void close_ports(ServoArm *self)
{
    for (int k = 0; k < SERVO_BUSES_MAX; k++) {
        if (self->fds[k] >= 0)
            close(self->fds[k]);
        self->fds[k] = -1;
        self->arm.buses[k].fd = -1; /* whoever still holds the port then reads "unplugged" */
    }
}

static int servo_ids(PyObject *sequence, uint8_t *ids, size_t *n)
{
    PyObject *fast = PySequence_Fast(sequence, "ids must be a sequence of servo ids");
    if (fast == NULL)
        return -1;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(fast);
    int bad = count < 1 || count > BUS_SERVOS_MAX;
    for (Py_ssize_t i = 0; !bad && i < count; i++) {
        long id = PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, i));
        bad = id < 0 || id > 252;
        ids[i] = (uint8_t)id;
    }
    Py_DECREF(fast);
    if (bad) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "ids must be 1 to %d numbers of 0..252", BUS_SERVOS_MAX);
        return -1;
    }
    *n = (size_t)count;
    return 0;
}

/* Every servo language there is, by the name that descriptions give it. */
static const servo_protocol *const protocols[] = {&dynamixel2, &feetech0};

static const servo_protocol *protocol_named(const char *name)
{
    for (size_t i = 0; i < sizeof protocols / sizeof protocols[0]; i++)
        if (strcmp(protocols[i]->name, name) == 0)
            return protocols[i];
    PyErr_Format(PyExc_ValueError, "no servo protocol %s", name);
    return NULL;
}

/* A role's register of the mapping: name -> (address, bytes, sign); one that is not there is none. */
static int role(PyObject *roles, const char *name, servo_register *out)
{
    PyObject *told = PyDict_GetItemString(roles, name);
    return told == NULL || PyArg_ParseTuple(told, "HBh", &out->address, &out->bytes, &out->sign) ? 0 : -1;
}

static int roles_of(PyObject *roles, servo_roles *at)
{
    const struct {
        const char *name;
        servo_register *where;
    } all[] = {{"torque", &at->torque},     {"goal", &at->goal},
               {"block", &at->block},       {"load", &at->load},
               {"velocity", &at->velocity}, {"position", &at->position},
               {"voltage", &at->voltage},   {"temperature", &at->temperature},
               {"error", &at->error},       {"watchdog", &at->watchdog},
               {"lock", &at->lock}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (role(roles, all[i].name, all[i].where) < 0)
            return -1;
    return 0;
}

static int ServoArm_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path",        "baud",          "protocol",    "ids",
                            "roles",       "velocity_unit", "watchdog_on", "watchdog_tripped",
                            "second_path", "second",        NULL};
    ServoArm *self = (ServoArm *)object;
    const char *paths[SERVO_BUSES_MAX] = {NULL, NULL}, *protocol;
    unsigned baud;
    int second = -1;
    PyObject *ids, *roles;
    servo_arm_description is = {0};
    size_t n;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sIsOO!dbb|zi", names, &paths[0], &baud, &protocol, &ids,
                                     &PyDict_Type, &roles, &is.velocity_unit, &is.watchdog_on, &is.watchdog_tripped,
                                     &paths[1], &second))
        return -1;
    is.protocol = protocol_named(protocol);
    if (is.protocol == NULL || servo_ids(ids, is.ids, &n) < 0 || roles_of(roles, &is.at) < 0)
        return -1;
    is.joints = (int32_t)n;
    is.second = paths[1] == NULL ? is.joints : second;
    if (is.second < 1 || is.second > is.joints - (paths[1] != NULL)) {
        PyErr_SetString(PyExc_ValueError, "each bus needs a servo");
        return -1;
    }
    if (self->fds[0] >= 0) {
        PyErr_SetString(PyExc_ValueError, "the bus is open already");
        return -1;
    }
    for (int k = 0; k < servo_buses(&is); k++) {
        self->fds[k] = serial_open(paths[k], baud);
        if (self->fds[k] < 0) {
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, paths[k]);
            close_ports(self);
            return -1;
        }
    }
    servo_arm_init(&self->arm, self->fds, &is);
    self->port = servo_arm_port(&self->arm);
    return 0;
}

static PyObject *ServoArm_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    ServoArm *self = (ServoArm *)type->tp_alloc(type, 0);
    for (int k = 0; self != NULL && k < SERVO_BUSES_MAX; k++)
        self->fds[k] = -1;
    return (PyObject *)self;
}

static PyObject *ServoArm_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    close_ports((ServoArm *)object);
    Py_RETURN_NONE;
}

static void ServoArm_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    close_ports((ServoArm *)object);
    type->tp_free(object);
}

static PyObject *ServoArm_ping(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    unsigned char id;
    double timeout_s;
    int number = 0;
    bus *bus;
    uint16_t model = 0, firmware = 0;
    bus_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "bd|i", &id, &timeout_s, &number) ||
        (bus = bus_numbered(self, number)) == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = bus_ping(bus, id, deadline_after(timeout_s), &model, &firmware);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(iii)", (int)result, (int)model, (int)firmware);
}

static PyObject *ServoArm_sync_read(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    PyObject *ids_object;
    unsigned short address, length;
    double timeout_s;
    uint8_t ids[BUS_SERVOS_MAX], data[BUS_SERVOS_MAX * BUS_READ_MAX] = {0}, alerts[BUS_SERVOS_MAX] = {0};
    bus_registers what = {.ids = ids};
    int number = 0;
    bus *bus;
    bus_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "OHHd|i", &ids_object, &address, &length, &timeout_s, &number) ||
        servo_ids(ids_object, ids, &what.servos) < 0 || (bus = bus_numbered(self, number)) == NULL)
        return NULL;
    what.address = address;
    what.length = length;
    Py_BEGIN_ALLOW_THREADS
    result = bus_sync_read(bus, &what, deadline_after(timeout_s), data, alerts);
    Py_END_ALLOW_THREADS
    size_t n = result == BUS_OK ? what.servos : 0;
    return Py_BuildValue("(iy#y#)", (int)result, (const char *)data, (Py_ssize_t)(n * length), (const char *)alerts,
                         (Py_ssize_t)n);
}

static PyObject *ServoArm_write(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    unsigned char id;
    unsigned short address;
    Py_buffer data;
    double timeout_s;
    int number = 0;
    bus *bus;
    bus_result result = BUS_REFUSED;
    if (!is_open(self) || !PyArg_ParseTuple(args, "bHy*d|i", &id, &address, &data, &timeout_s, &number))
        return NULL;
    if ((bus = bus_numbered(self, number)) != NULL && data.len <= BUS_READ_MAX) {
        Py_BEGIN_ALLOW_THREADS
        result = bus_write(bus, id, address, data.buf, (uint16_t)data.len, deadline_after(timeout_s));
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return bus == NULL ? NULL : PyLong_FromLong(result);
}

static PyObject *ServoArm_reboot(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    unsigned char id;
    double timeout_s;
    int number = 0;
    bus *bus;
    bus_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "bd|i", &id, &timeout_s, &number) ||
        (bus = bus_numbered(self, number)) == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = bus_reboot(bus, id, deadline_after(timeout_s));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

static PyObject *ServoArm_read_arm(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    double timeout_s;
    arm_reading r;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "d", &timeout_s))
        return NULL;
    memset(&r, 0, sizeof r);
    Py_BEGIN_ALLOW_THREADS
    result = self->port.read(&self->arm, deadline_after(timeout_s), &r);
    Py_END_ALLOW_THREADS
    int32_t load[ARM_JOINTS_MAX], alert[ARM_JOINTS_MAX];
    const int n = self->port.joints;
    for (int i = 0; i < n; i++) {
        load[i] = r.load[i];
        alert[i] = r.alert[i];
    }
    return Py_BuildValue("(iLNNNN)", (int)result, (long long)r.time_ns, tuple_of_int32(r.position, n),
                         tuple_of_int32(r.velocity, n), tuple_of_int32(load, n), tuple_of_int32(alert, n));
}

static PyObject *ServoArm_write_goals(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    PyObject *counts;
    int32_t goals[ARM_JOINTS_MAX];
    double timeout_s;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Od", &counts, &timeout_s) ||
        counts_from_python(counts, self->port.joints, goals) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = self->port.write_goals(&self->arm, goals, deadline_after(timeout_s));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

static PyObject *ServoArm_set_torque(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    int on;
    double timeout_s;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "pd", &on, &timeout_s))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = self->port.set_torque(&self->arm, on != 0, NULL, deadline_after(timeout_s));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

/* settings(((address, bytes, (value or None for each servo)), ...)): by rising address. */
static PyObject *ServoArm_settings(PyObject *object, PyObject *argument)
{
    servo_arm *arm = &((ServoArm *)object)->arm;
    PyObject *fast = PySequence_Fast(argument, "settings must be a sequence");
    if (fast == NULL)
        return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(fast);
    servo_setting found[SERVO_SETTINGS_MAX] = {0};
    if (n > SERVO_SETTINGS_MAX)
        PyErr_Format(PyExc_ValueError, "%zd settings, at most %d fit", n, SERVO_SETTINGS_MAX);
    for (Py_ssize_t k = 0; k < n && !PyErr_Occurred(); k++) {
        PyObject *values;
        servo_setting *setting = &found[k];
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(fast, k), "HHO!", &setting->address, &setting->size,
                              &PyTuple_Type, &values))
            break;
        if (PyTuple_GET_SIZE(values) != arm->is.joints)
            PyErr_SetString(PyExc_ValueError, "a setting has a value or None for each joint");
        for (int i = 0; i < arm->is.joints && !PyErr_Occurred(); i++) {
            PyObject *value = PyTuple_GET_ITEM(values, i);
            if (value == Py_None)
                continue;
            setting->joints |= 1u << i;
            setting->values[i] = (int32_t)PyLong_AsLong(value);
        }
        bool size = setting->size == 1 || setting->size == 2 || setting->size == 4;
        if (!PyErr_Occurred() && (!size || (k > 0 && setting->address < found[k - 1].address + found[k - 1].size)))
            PyErr_SetString(PyExc_ValueError, "settings are registers of 1, 2 or 4 bytes by rising address");
    }
    Py_DECREF(fast);
    if (PyErr_Occurred())
        return NULL;
    memcpy(arm->settings, found, sizeof found);
    arm->n_settings = (size_t)n;
    Py_RETURN_NONE;
}

static PyObject *ServoArm_trouble(PyObject *object, PyObject *unused)
{
    const arm_trouble *trouble = &((ServoArm *)object)->arm.trouble;
    (void)unused;
    return Py_BuildValue("(iiii)", trouble->joint, (int)trouble->address, trouble->wanted, trouble->found);
}

static void release_owner(PyObject *capsule)
{
    Py_XDECREF(PyCapsule_GetContext(capsule));
}

static PyObject *ServoArm_port(PyObject *object, void *unused)
{
    ServoArm *self = (ServoArm *)object;
    (void)unused;
    if (!is_open(self))
        return NULL;
    PyObject *capsule = PyCapsule_New(&self->port, ARM_PORT_CAPSULE, release_owner);
    if (capsule == NULL)
        return NULL;
    Py_INCREF(object); /* the capsule keeps the bus alive */
    PyCapsule_SetContext(capsule, object);
    return capsule;
}

static PyMethodDef methods[] = {
    {"ping", ServoArm_ping, METH_VARARGS, "ping(id, timeout_s, bus=0) -> (result, model, firmware)"},
    {"sync_read", ServoArm_sync_read, METH_VARARGS,
     "sync_read(ids, address, length, timeout_s, bus=0) -> (result, bytes of all ids, alert byte per id)"},
    {"write", ServoArm_write, METH_VARARGS, "write(id, address, data, timeout_s, bus=0) -> result"},
    {"reboot", ServoArm_reboot, METH_VARARGS, "reboot(id, timeout_s, bus=0) -> result"},
    {"read_arm", ServoArm_read_arm, METH_VARARGS,
     "read_arm(timeout_s) -> (arm result, time_ns, positions, velocities, loads, alerts)"},
    {"write_goals", ServoArm_write_goals, METH_VARARGS, "write_goals(counts, timeout_s) -> arm result"},
    {"set_torque", ServoArm_set_torque, METH_VARARGS, "set_torque(on, timeout_s) -> arm result"},
    {"settings", ServoArm_settings, METH_O,
     "settings(((address, bytes, a value or None for each joint), ...)) by rising address"},
    {"trouble", ServoArm_trouble, METH_NOARGS,
     "trouble() -> (joint, address, wanted, found) of the last refused setting"},
    {"close", ServoArm_close, METH_NOARGS, "close()"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"port", ServoArm_port, NULL, "PyCapsule of the arm_port for the control loop", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject ServoArm_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.ServoArm",
    .tp_basicsize = sizeof(ServoArm),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "ServoArm(path, baud, protocol, ids, roles, velocity_unit, watchdog_on, watchdog_tripped, "
              "second_path=None, second=-1): opens the ports "
              "for this process alone; second: the first servo on the second bus.",
    .tp_new = ServoArm_new,
    .tp_init = ServoArm_init,
    .tp_dealloc = ServoArm_dealloc,
    .tp_methods = methods,
    .tp_getset = attributes,
};

int bind_bus(PyObject *module)
{
    return module_add_type(module, "ServoArm", &ServoArm_type);
}
