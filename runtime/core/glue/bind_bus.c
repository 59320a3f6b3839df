/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.ServoArm`: the servo bus and the servos of an arm for Python's slow path.
 *
 * Verdicts are returned, not raised: the callers know joint names and fixes. The
 * lock is dropped around every wait, so other threads run while the bus answers.
 * Attribute `port` hands the same bus to the control loop as an arm_port.
 */
#include "fields.h"

#include "serial.h"
#include "servo_arm.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    servo_arm arm;
    arm_port port;
    int fds[SERVO_BUSES_MAX], open; /* so many are open */
} ServoArm;

static int64_t deadline_after(double timeout_s)
{
    if (!(timeout_s > 0))
        timeout_s = 0;
    return serial_now_ns() + (int64_t)(timeout_s < 60 ? timeout_s * 1e9 : 60e9);
}

static int is_open(const ServoArm *self)
{
    if (self->open > 0)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the bus is closed");
    return 0;
}

/* A bus of an open arm by its number; NULL: it is closed, or has none such. */
static bus *bus_numbered(ServoArm *self, int number)
{
    if (!is_open(self))
        return NULL;
    if (number >= 0 && number < servo_buses(&self->arm.is))
        return &self->arm.buses[number];
    PyErr_Format(PyExc_ValueError, "no bus %d", number);
    return NULL;
}

static void close_ports(ServoArm *self)
{
    while (self->open > 0) {
        close(self->fds[--self->open]);
        self->arm.buses[self->open].fd = -1; /* whoever still holds the port then reads "unplugged" */
    }
}

static int servo_ids(PyObject *sequence, uint8_t *ids, size_t *n)
{
    int32_t numbers[BUS_SERVOS_MAX];
    const Py_ssize_t count = PySequence_Size(sequence);
    bool good = count >= 1 && count <= BUS_SERVOS_MAX && TAKE_EACH(sequence, numbers, (int)count) == 0;
    for (Py_ssize_t i = 0; good && i < count; i++) {
        good = numbers[i] >= 0 && numbers[i] <= 252;
        ids[i] = (uint8_t)numbers[i];
    }
    if (!good && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "ids must be 1 to %d numbers of 0..252", BUS_SERVOS_MAX);
    *n = good ? (size_t)count : 0;
    return good ? 0 : -1;
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

/* The mapping's registers by what they are for: name -> (address, bytes, sign); one that is not there is none. */
static int roles_of(PyObject *roles, servo_roles *at)
{
#define ROLE(name) {#name, &at->name}
    const struct {
        const char *name;
        servo_register *where;
    } all[] = {ROLE(torque),   ROLE(goal),    ROLE(block),       ROLE(load),  ROLE(velocity), ROLE(position),
               ROLE(voltage), ROLE(temperature), ROLE(error), ROLE(watchdog), ROLE(lock)};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        PyObject *given = PyDict_GetItemString(roles, all[i].name);
        servo_register *where = all[i].where;
        if (given != NULL && !PyArg_ParseTuple(given, "HBh", &where->address, &where->bytes, &where->sign))
            return -1;
    }
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
    if (self->open > 0) {
        PyErr_SetString(PyExc_ValueError, "the bus is open already");
        return -1;
    }
    for (; self->open < servo_buses(&is); self->open++) {
        self->fds[self->open] = serial_open(paths[self->open], baud);
        if (self->fds[self->open] < 0) {
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, paths[self->open]);
            close_ports(self);
            return -1;
        }
    }
    servo_arm_init(&self->arm, self->fds, &is);
    self->port = servo_arm_port(&self->arm);
    return 0;
}

static PyObject *ServoArm_close(PyObject *object, PyObject *Py_UNUSED(unused))
{
    close_ports((ServoArm *)object);
    Py_RETURN_NONE;
}

static void ServoArm_dealloc(PyObject *object)
{
    close_ports((ServoArm *)object);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *ServoArm_ping(PyObject *object, PyObject *args)
{
    unsigned char id;
    double timeout_s;
    int number = 0;
    bus *bus;
    uint16_t model = 0, firmware = 0;
    bus_result result;
    if (!PyArg_ParseTuple(args, "bd|i", &id, &timeout_s, &number) ||
        (bus = bus_numbered((ServoArm *)object, number)) == NULL)
        return NULL;
    UNLOCKED(result = bus_ping(bus, id, deadline_after(timeout_s), &model, &firmware));
    return Py_BuildValue("(iii)", (int)result, (int)model, (int)firmware);
}

static PyObject *ServoArm_sync_read(PyObject *object, PyObject *args)
{
    PyObject *ids_object;
    double timeout_s;
    uint8_t ids[BUS_SERVOS_MAX], data[BUS_SERVOS_MAX * BUS_READ_MAX] = {0}, alerts[BUS_SERVOS_MAX] = {0};
    bus_registers what = {.ids = ids};
    int number = 0;
    bus *bus;
    bus_result result;
    if (!PyArg_ParseTuple(args, "OHHd|i", &ids_object, &what.address, &what.length, &timeout_s, &number) ||
        servo_ids(ids_object, ids, &what.servos) < 0 || (bus = bus_numbered((ServoArm *)object, number)) == NULL)
        return NULL;
    UNLOCKED(result = bus_sync_read(bus, &what, deadline_after(timeout_s), data, alerts));
    size_t n = result == BUS_OK ? what.servos : 0;
    return Py_BuildValue("(iy#y#)", (int)result, (const char *)data, (Py_ssize_t)(n * what.length),
                         (const char *)alerts, (Py_ssize_t)n);
}

static PyObject *ServoArm_write(PyObject *object, PyObject *args)
{
    unsigned char id;
    unsigned short address;
    Py_buffer data;
    double timeout_s;
    int number = 0;
    bus *bus;
    bus_result result = BUS_REFUSED;
    if (!PyArg_ParseTuple(args, "bHy*d|i", &id, &address, &data, &timeout_s, &number))
        return NULL;
    if ((bus = bus_numbered((ServoArm *)object, number)) != NULL && data.len <= BUS_READ_MAX) {
        UNLOCKED(result = bus_write(bus, id, address, data.buf, (uint16_t)data.len, deadline_after(timeout_s)));
    }
    PyBuffer_Release(&data);
    return bus == NULL ? NULL : PyLong_FromLong(result);
}

static PyObject *ServoArm_reboot(PyObject *object, PyObject *args)
{
    unsigned char id;
    double timeout_s;
    int number = 0;
    bus *bus;
    bus_result result;
    if (!PyArg_ParseTuple(args, "bd|i", &id, &timeout_s, &number) ||
        (bus = bus_numbered((ServoArm *)object, number)) == NULL)
        return NULL;
    UNLOCKED(result = bus_reboot(bus, id, deadline_after(timeout_s)));
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
    UNLOCKED(result = self->port.read(&self->arm, deadline_after(timeout_s), &r));
    const int n = self->port.joints;
    return Py_BuildValue("(iLNNNN)", (int)result, (long long)r.time_ns, TUPLE_OF(r.position, n),
                         TUPLE_OF(r.velocity, n), TUPLE_OF(r.load, n), TUPLE_OF(r.alert, n));
}

static PyObject *ServoArm_write_goals(PyObject *object, PyObject *args)
{
    ServoArm *self = (ServoArm *)object;
    PyObject *counts;
    int32_t goals[ARM_JOINTS_MAX];
    double timeout_s;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Od", &counts, &timeout_s) ||
        TAKE_EACH(counts, goals, self->port.joints) < 0)
        return NULL;
    UNLOCKED(result = self->port.write_goals(&self->arm, goals, deadline_after(timeout_s)));
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
    UNLOCKED(result = self->port.set_torque(&self->arm, on != 0, NULL, deadline_after(timeout_s)));
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
        servo_register *at = &setting->at;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(fast, k), "HbO!", &at->address, &at->bytes, &PyTuple_Type,
                              &values))
            break;
        at->sign = at->bytes == 1 ? SIGN_NONE : SIGN_TWOS;
        if (PyTuple_GET_SIZE(values) != arm->is.joints)
            PyErr_SetString(PyExc_ValueError, "a setting has a value or None for each joint");
        for (int i = 0; i < arm->is.joints && !PyErr_Occurred(); i++) {
            PyObject *value = PyTuple_GET_ITEM(values, i);
            if (value == Py_None)
                continue;
            setting->joints |= 1u << i;
            setting->values[i] = (int32_t)PyLong_AsLong(value);
        }
        bool size = at->bytes == 1 || at->bytes == 2 || at->bytes == 4;
        if (!PyErr_Occurred() && (!size || (k > 0 && at->address < found[k - 1].at.address + found[k - 1].at.bytes)))
            PyErr_SetString(PyExc_ValueError, "settings are registers of 1, 2 or 4 bytes by rising address");
    }
    Py_DECREF(fast);
    if (PyErr_Occurred())
        return NULL;
    memcpy(arm->settings, found, sizeof found);
    arm->n_settings = (size_t)n;
    Py_RETURN_NONE;
}

static PyObject *ServoArm_trouble(PyObject *object, PyObject *Py_UNUSED(unused))
{
    const arm_trouble *trouble = &((ServoArm *)object)->arm.trouble;
    return Py_BuildValue("(iiii)", trouble->joint, (int)trouble->address, trouble->wanted, trouble->found);
}

static PyObject *ServoArm_port(PyObject *object, void *Py_UNUSED(unused))
{
    return is_open((ServoArm *)object) ? capsule_of_port(object, &((ServoArm *)object)->port) : NULL;
}

static PyMethodDef methods[] = {
    {"ping", ServoArm_ping, METH_VARARGS, NULL},
    {"sync_read", ServoArm_sync_read, METH_VARARGS, NULL},
    {"write", ServoArm_write, METH_VARARGS, NULL},
    {"reboot", ServoArm_reboot, METH_VARARGS, NULL},
    {"read_arm", ServoArm_read_arm, METH_VARARGS, NULL},
    {"write_goals", ServoArm_write_goals, METH_VARARGS, NULL},
    {"set_torque", ServoArm_set_torque, METH_VARARGS, NULL},
    {"settings", ServoArm_settings, METH_O, NULL},
    {"trouble", ServoArm_trouble, METH_NOARGS, NULL},
    {"close", ServoArm_close, METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef attributes[] = {{"port", ServoArm_port, NULL, NULL, NULL}, {NULL}};

PyTypeObject ServoArm_type = {
    TYPE(ServoArm),
    .tp_new = PyType_GenericNew,
    .tp_init = ServoArm_init,
    .tp_dealloc = ServoArm_dealloc,
    .tp_methods = methods,
    .tp_getset = attributes,
};
