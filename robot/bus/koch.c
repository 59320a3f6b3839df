#include "koch.h"

#include "serial.h"

#include <string.h>

enum { READ_BYTES = 10, GOAL_BYTES = 4, WATCHDOG_TRIPPED = 0xFF, GOAL_TOLERANCE = 2 };

void koch_init(koch *koch, int fd, const uint8_t ids[ARM_JOINTS])
{
    memset(koch, 0, sizeof *koch);
    bus_init(&koch->bus, fd);
    memcpy(koch->ids, ids, ARM_JOINTS);
}

static arm_result from_bus(bus_result result)
{
    static const arm_result meaning[] = {[BUS_OK] = ARM_OK,
                                         [BUS_TIMEOUT] = ARM_TIMEOUT,
                                         [BUS_CORRUPT] = ARM_CORRUPT,
                                         [BUS_REFUSED] = ARM_CORRUPT,
                                         [BUS_UNPLUGGED] = ARM_UNPLUGGED};
    return meaning[result];
}

static bus_registers all(const koch *koch, uint16_t address, uint16_t length)
{
    return (bus_registers){.ids = koch->ids, .servos = ARM_JOINTS, .address = address, .length = length};
}

static int32_t signed32(const uint8_t *bytes)
{
    return (int32_t)((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                     (uint32_t)bytes[3] << 24);
}

static arm_result read_arm(void *context, int64_t deadline_ns, arm_reading *out)
{
    koch *koch = context;
    /* One byte more every second time: a late answer to the same question then has the wrong length. */
    uint16_t length = READ_BYTES + (koch->reads++ & 1);
    bus_registers what = all(koch, KOCH_PRESENT_LOAD, length);
    uint8_t data[ARM_JOINTS * (READ_BYTES + 1)], alerts[ARM_JOINTS];
    bus_result result = bus_sync_read(&koch->bus, &what, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    out->time_ns = serial_now_ns();
    arm_result verdict = ARM_OK;
    for (int i = 0; i < ARM_JOINTS; i++) {
        const uint8_t *bytes = data + (size_t)i * length;
        out->load[i] = (int16_t)(bytes[0] | bytes[1] << 8);
        out->velocity[i] = signed32(bytes + 2);
        out->position[i] = signed32(bytes + 6);
        out->alert[i] = alerts[i];
        if (alerts[i])
            verdict = ARM_ALERT;
    }
    return verdict;
}

static arm_result write_goals(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    koch *koch = context;
    uint8_t data[ARM_JOINTS * GOAL_BYTES];
    for (int i = 0; i < ARM_JOINTS; i++) {
        uint32_t goal = (uint32_t)goals[i];
        for (int byte = 0; byte < GOAL_BYTES; byte++)
            data[i * GOAL_BYTES + byte] = (uint8_t)(goal >> (8 * byte));
    }
    bus_registers what = all(koch, KOCH_GOAL_POSITION, GOAL_BYTES);
    return from_bus(bus_sync_write(&koch->bus, &what, data, deadline_ns));
}

/* One byte register of all six: written, read back, compared. */
static arm_result set_all(koch *koch, uint16_t address, uint8_t value, int64_t deadline_ns)
{
    uint8_t data[ARM_JOINTS], alerts[ARM_JOINTS];
    bus_registers what = all(koch, address, 1);
    memset(data, value, sizeof data);
    bus_result result = bus_sync_write(&koch->bus, &what, data, deadline_ns);
    if (result == BUS_OK)
        result = bus_sync_read(&koch->bus, &what, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    for (int i = 0; i < ARM_JOINTS; i++)
        if (data[i] != value)
            return alerts[i] ? ARM_ALERT : ARM_CORRUPT;
    return ARM_OK;
}

static arm_result torque_off(koch *koch, int64_t deadline_ns)
{
    koch->armed = false;
    int64_t start = serial_now_ns();
    arm_result result = set_all(koch, KOCH_TORQUE_ENABLE, 0, start + (deadline_ns - start) / 2);
    if (result == ARM_OK)
        return ARM_OK;
    /* One of them did not confirm: ask each alone, with an equal share of the time that is left. */
    result = ARM_OK;
    for (int i = 0; i < ARM_JOINTS; i++) {
        const uint8_t off = 0;
        int64_t now = serial_now_ns();
        int64_t share = now + (deadline_ns - now) / (ARM_JOINTS - i);
        bus_result one = bus_write(&koch->bus, koch->ids[i], KOCH_TORQUE_ENABLE, &off, 1, share);
        if (one != BUS_OK)
            result = from_bus(one);
    }
    return result;
}

/* Goals, NULL: the present position, are written and read back: a tripped watchdog refuses them in silence. */
static arm_result start_from(koch *koch, const int32_t *goals, int64_t deadline_ns)
{
    arm_reading reading;
    arm_result result = ARM_OK;
    if (goals == NULL) {
        result = read_arm(koch, deadline_ns, &reading);
        goals = reading.position;
    }
    if (result == ARM_OK)
        result = write_goals(koch, goals, deadline_ns);
    if (result != ARM_OK)
        return result;
    uint8_t data[ARM_JOINTS * GOAL_BYTES], alerts[ARM_JOINTS];
    bus_registers what = all(koch, KOCH_GOAL_POSITION, GOAL_BYTES);
    result = from_bus(bus_sync_read(&koch->bus, &what, deadline_ns, data, alerts));
    for (int i = 0; i < ARM_JOINTS && result == ARM_OK; i++) {
        int64_t off = (int64_t)signed32(data + i * GOAL_BYTES) - goals[i];
        if (off > GOAL_TOLERANCE || off < -GOAL_TOLERANCE)
            result = ARM_WATCHDOG;
    }
    return result;
}

static arm_result clear_watchdog(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    koch *koch = context;
    koch->clearing = true;
    arm_result result = set_all(koch, KOCH_BUS_WATCHDOG, 0, deadline_ns);
    if (result == ARM_OK)
        result = start_from(koch, goals, deadline_ns);
    if (result == ARM_OK)
        result = set_all(koch, KOCH_BUS_WATCHDOG, KOCH_WATCHDOG_TICKS, deadline_ns);
    koch->clearing = result != ARM_OK;
    return result;
}

static arm_result set_torque(void *context, bool on, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    koch *koch = context;
    if (!on)
        return torque_off(koch, deadline_ns);
    int64_t start = serial_now_ns();
    int64_t soon = deadline_ns - (deadline_ns - start) / 3; /* the rest is kept for taking it back */
    arm_result result = clear_watchdog(koch, goals, soon);
    if (result != ARM_OK)
        return result;
    koch->armed = true;
    result = set_all(koch, KOCH_TORQUE_ENABLE, 1, soon);
    if (result != ARM_OK)
        (void)torque_off(koch, deadline_ns); /* never half an arm under torque */
    return result;
}

static arm_result check_watchdog(void *context, int64_t deadline_ns)
{
    koch *koch = context;
    uint8_t data[ARM_JOINTS], alerts[ARM_JOINTS];
    bus_registers what = all(koch, KOCH_BUS_WATCHDOG, 1);
    bus_result result = bus_sync_read(&koch->bus, &what, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    arm_result verdict = ARM_OK;
    for (int i = 0; i < ARM_JOINTS; i++) {
        bool on = data[i] == KOCH_WATCHDOG_TICKS;
        if (data[i] == WATCHDOG_TRIPPED || (koch->clearing && !on))
            verdict = ARM_WATCHDOG;
        else if (koch->armed && !on)
            return ARM_REBOOTED; /* it has forgotten its watchdog, and with it its goal and its torque */
    }
    return verdict;
}

arm_port koch_port(koch *koch)
{
    return (arm_port){.context = koch,
                      .read = read_arm,
                      .write_goals = write_goals,
                      .set_torque = set_torque,
                      .check_watchdog = check_watchdog,
                      .clear_watchdog = clear_watchdog};
}
