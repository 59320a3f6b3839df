/* SPDX-License-Identifier: Apache-2.0 */
/* `_core.KochBus`: the servo bus and the Koch's six servos for Python's slow path.
 *
 * Verdicts are returned, not raised: the callers know joint names and fixes. The
 * lock is dropped around every wait, so other threads run while the bus answers.
 * Attribute `port` hands the same bus to the control loop as an arm_port.
 */
#include "module.h"

#include "koch.h"
#include "serial.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    koch koch;
    arm_port port;
    int fd;
} KochBus;

static int64_t deadline_after(double timeout_s)
{
    if (!(timeout_s > 0))
        timeout_s = 0;
    return serial_now_ns() + (int64_t)(timeout_s < 60 ? timeout_s * 1e9 : 60e9);
}

static int is_open(const KochBus *self)
{
    if (self->fd >= 0)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the bus is closed");
    return 0;
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

static int KochBus_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "baud", "ids", NULL};
    KochBus *self = (KochBus *)object;
    const char *path;
    unsigned baud = 1000000;
    PyObject *ids_object = NULL;
    uint8_t ids[BUS_SERVOS_MAX] = {1, 2, 3, 4, 5, 6};
    size_t n = ARM_JOINTS;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|IO", names, &path, &baud, &ids_object))
        return -1;
    if (ids_object != NULL && servo_ids(ids_object, ids, &n) < 0)
        return -1;
    if (n != ARM_JOINTS) {
        PyErr_Format(PyExc_ValueError, "a Koch arm has %d servos, not %zu", ARM_JOINTS, n);
        return -1;
    }
    if (self->fd >= 0) {
        PyErr_SetString(PyExc_ValueError, "the bus is open already");
        return -1;
    }
    self->fd = serial_open(path, baud);
    if (self->fd < 0) {
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
        return -1;
    }
    koch_init(&self->koch, self->fd, ids);
    self->port = koch_port(&self->koch);
    return 0;
}

static PyObject *KochBus_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    KochBus *self = (KochBus *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->fd = -1;
    return (PyObject *)self;
}

static PyObject *KochBus_close(PyObject *object, PyObject *unused)
{
    KochBus *self = (KochBus *)object;
    (void)unused;
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
    self->koch.bus.fd = -1; /* whoever still holds the port then reads "unplugged" */
    Py_RETURN_NONE;
}

static void KochBus_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    KochBus *self = (KochBus *)object;
    if (self->fd >= 0)
        close(self->fd);
    type->tp_free(object);
}

static PyObject *KochBus_ping(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    unsigned char id;
    double timeout_s;
    uint16_t model = 0, firmware = 0;
    bus_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "bd", &id, &timeout_s))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = bus_ping(&self->koch.bus, id, deadline_after(timeout_s), &model, &firmware);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(iii)", (int)result, (int)model, (int)firmware);
}

static PyObject *KochBus_sync_read(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    PyObject *ids_object;
    unsigned short address, length;
    double timeout_s;
    uint8_t ids[BUS_SERVOS_MAX], data[BUS_SERVOS_MAX * BUS_READ_MAX] = {0}, alerts[BUS_SERVOS_MAX] = {0};
    bus_registers what = {.ids = ids};
    bus_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "OHHd", &ids_object, &address, &length, &timeout_s) ||
        servo_ids(ids_object, ids, &what.servos) < 0)
        return NULL;
    what.address = address;
    what.length = length;
    Py_BEGIN_ALLOW_THREADS
    result = bus_sync_read(&self->koch.bus, &what, deadline_after(timeout_s), data, alerts);
    Py_END_ALLOW_THREADS
    size_t n = result == BUS_OK ? what.servos : 0;
    return Py_BuildValue("(iy#y#)", (int)result, (const char *)data, (Py_ssize_t)(n * length), (const char *)alerts,
                         (Py_ssize_t)n);
}

static PyObject *KochBus_write(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    unsigned char id;
    unsigned short address;
    Py_buffer data;
    double timeout_s;
    bus_result result = BUS_REFUSED;
    if (!is_open(self) || !PyArg_ParseTuple(args, "bHy*d", &id, &address, &data, &timeout_s))
        return NULL;
    if (data.len <= BUS_READ_MAX) {
        Py_BEGIN_ALLOW_THREADS
        result = bus_write(&self->koch.bus, id, address, data.buf, (uint16_t)data.len, deadline_after(timeout_s));
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyLong_FromLong(result);
}

static PyObject *KochBus_reboot(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    unsigned char id;
    double timeout_s;
    bus_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "bd", &id, &timeout_s))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = bus_reboot(&self->koch.bus, id, deadline_after(timeout_s));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

static PyObject *KochBus_read_arm(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    double timeout_s;
    arm_reading r;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "d", &timeout_s))
        return NULL;
    memset(&r, 0, sizeof r);
    Py_BEGIN_ALLOW_THREADS
    result = self->port.read(&self->koch, deadline_after(timeout_s), &r);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(iL(iiiiii)(iiiiii)(iiiiii)(iiiiii))", (int)result, (long long)r.time_ns, r.position[0],
                         r.position[1], r.position[2], r.position[3], r.position[4], r.position[5], r.velocity[0],
                         r.velocity[1], r.velocity[2], r.velocity[3], r.velocity[4], r.velocity[5], r.load[0],
                         r.load[1], r.load[2], r.load[3], r.load[4], r.load[5], r.alert[0], r.alert[1], r.alert[2],
                         r.alert[3], r.alert[4], r.alert[5]);
}

static PyObject *KochBus_write_goals(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    int32_t goals[ARM_JOINTS];
    double timeout_s;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "(iiiiii)d", &goals[0], &goals[1], &goals[2], &goals[3], &goals[4],
                                            &goals[5], &timeout_s))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = self->port.write_goals(&self->koch, goals, deadline_after(timeout_s));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

static PyObject *KochBus_set_torque(PyObject *object, PyObject *args)
{
    KochBus *self = (KochBus *)object;
    int on;
    double timeout_s;
    arm_result result;
    if (!is_open(self) || !PyArg_ParseTuple(args, "pd", &on, &timeout_s))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = self->port.set_torque(&self->koch, on != 0, NULL, deadline_after(timeout_s));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

/* settings(((address, bytes, (value or None for each servo)), ...)): by rising address. */
static PyObject *KochBus_settings(PyObject *object, PyObject *argument)
{
    koch *koch = &((KochBus *)object)->koch;
    PyObject *fast = PySequence_Fast(argument, "settings must be a sequence");
    if (fast == NULL)
        return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(fast);
    koch_setting found[KOCH_SETTINGS_MAX] = {0};
    if (n > KOCH_SETTINGS_MAX)
        PyErr_Format(PyExc_ValueError, "%zd settings, at most %d fit", n, KOCH_SETTINGS_MAX);
    for (Py_ssize_t k = 0; k < n && !PyErr_Occurred(); k++) {
        PyObject *values[ARM_JOINTS];
        koch_setting *setting = &found[k];
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(fast, k), "HH(OOOOOO)", &setting->address, &setting->size, &values[0],
                              &values[1], &values[2], &values[3], &values[4], &values[5]))
            break;
        for (int i = 0; i < ARM_JOINTS && !PyErr_Occurred(); i++) {
            if (values[i] == Py_None)
                continue;
            setting->joints |= (uint8_t)(1u << i);
            setting->values[i] = (int32_t)PyLong_AsLong(values[i]);
        }
        bool size = setting->size == 1 || setting->size == 2 || setting->size == 4;
        if (!PyErr_Occurred() && (!size || (k > 0 && setting->address < found[k - 1].address + found[k - 1].size)))
            PyErr_SetString(PyExc_ValueError, "settings are registers of 1, 2 or 4 bytes by rising address");
    }
    Py_DECREF(fast);
    if (PyErr_Occurred())
        return NULL;
    memcpy(koch->settings, found, sizeof found);
    koch->n_settings = (size_t)n;
    Py_RETURN_NONE;
}

static PyObject *KochBus_trouble(PyObject *object, PyObject *unused)
{
    const arm_trouble *trouble = &((KochBus *)object)->koch.trouble;
    (void)unused;
    return Py_BuildValue("(iiii)", trouble->joint, (int)trouble->address, trouble->wanted, trouble->found);
}

static void release_owner(PyObject *capsule)
{
    Py_XDECREF(PyCapsule_GetContext(capsule));
}

static PyObject *KochBus_port(PyObject *object, void *unused)
{
    KochBus *self = (KochBus *)object;
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
    {"ping", KochBus_ping, METH_VARARGS, "ping(id, timeout_s) -> (result, model, firmware)"},
    {"sync_read", KochBus_sync_read, METH_VARARGS,
     "sync_read(ids, address, length, timeout_s) -> (result, bytes of all ids, alert byte per id)"},
    {"write", KochBus_write, METH_VARARGS, "write(id, address, data, timeout_s) -> result"},
    {"reboot", KochBus_reboot, METH_VARARGS, "reboot(id, timeout_s) -> result"},
    {"read_arm", KochBus_read_arm, METH_VARARGS,
     "read_arm(timeout_s) -> (arm result, time_ns, positions, velocities, loads, alerts)"},
    {"write_goals", KochBus_write_goals, METH_VARARGS, "write_goals(six counts, timeout_s) -> arm result"},
    {"set_torque", KochBus_set_torque, METH_VARARGS, "set_torque(on, timeout_s) -> arm result"},
    {"settings", KochBus_settings, METH_O, "settings(((address, bytes, six values or None), ...)) by rising address"},
    {"trouble", KochBus_trouble, METH_NOARGS, "trouble() -> (joint, address, wanted, found) of the last refused setting"},
    {"close", KochBus_close, METH_NOARGS, "close()"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"port", KochBus_port, NULL, "PyCapsule of the arm_port for the control loop", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject KochBus_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "vla_edge._core.KochBus",
    .tp_basicsize = sizeof(KochBus),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "KochBus(path, baud=1000000, ids=(1, 2, 3, 4, 5, 6)): opens the port for this process alone.",
    .tp_new = KochBus_new,
    .tp_init = KochBus_init,
    .tp_dealloc = KochBus_dealloc,
    .tp_methods = methods,
    .tp_getset = attributes,
};

int bind_bus(PyObject *module)
{
    return module_add_type(module, "KochBus", &KochBus_type);
}
