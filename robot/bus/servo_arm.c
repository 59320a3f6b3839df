/* SPDX-License-Identifier: Apache-2.0 */
#include "servo_arm.h"

#include "serial.h"

#include <string.h>

enum { GOAL_TOLERANCE = 2, SETTING_TRIES = 3 };
static const int64_t SETTING_NS = 20000000, REBOOT_ANSWER_NS = 20000000;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void servo_arm_init(servo_arm *arm, const int *fds, const servo_arm_description *description)
{
    memset(arm, 0, sizeof *arm);
    for (int k = 0; k < servo_buses(description); k++)
        bus_init(&arm->buses[k], fds[k], description->protocol);
    arm->is = *description;
    arm->trouble.joint = -1;
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

static arm_result read_arm(void *context, int64_t deadline_ns, arm_reading *out)
{
    servo_arm *arm = context;
    const servo_roles *at = &arm->is.at;
    /* One byte more every second time: a late answer to the same question then has the wrong length. */
    uint16_t start = at->block.address, length = (uint16_t)(at->block.bytes + (arm->reads++ & 1));
    uint8_t data[ARM_JOINTS_MAX * BUS_READ_MAX], alerts[ARM_JOINTS_MAX];
    bus_result result = servo_ask(arm, start, length, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    out->time_ns = serial_now_ns();
    arm_result verdict = ARM_OK;
    for (int i = 0; i < arm->is.joints; i++) {
        const uint8_t *bytes = data + (size_t)i * length;
        out->load[i] = (int16_t)servo_decode(at->load, bytes + (at->load.address - start));
        out->velocity[i] = servo_decode(at->velocity, bytes + (at->velocity.address - start));
        out->position[i] = servo_decode(at->position, bytes + (at->position.address - start));
        out->alert[i] = alerts[i] != 0;
        if (alerts[i])
            verdict = ARM_ALERT;
    }
    return verdict;
}

static arm_result write_goals(void *context, const int32_t *goals, int64_t deadline_ns)
{
    servo_arm *arm = context;
    servo_register goal = arm->is.at.goal;
    uint8_t data[ARM_JOINTS_MAX * 4];
    for (int i = 0; i < arm->is.joints; i++)
        servo_encode(goal, goals[i], data + i * goal.bytes);
    return from_bus(servo_write(arm, goal.address, goal.bytes, data, deadline_ns));
}

/* One byte register of all servos: written, read back, compared. */
static arm_result set_all(servo_arm *arm, servo_register where, uint8_t value, int64_t deadline_ns)
{
    uint8_t data[ARM_JOINTS_MAX], alerts[ARM_JOINTS_MAX];
    if (where.bytes == 0)
        return ARM_OK;
    memset(data, value, sizeof data);
    bus_result result = servo_write(arm, where.address, 1, data, deadline_ns);
    if (result == BUS_OK)
        result = servo_read(arm, arm->is.ids, where.address, 1, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    for (int i = 0; i < arm->is.joints; i++)
        if (data[i] != value) {
            arm->trouble = (arm_trouble){.joint = i};
            return alerts[i] ? ARM_ALERT : ARM_CORRUPT;
        }
    return ARM_OK;
}

/* Settings of one servo or, with joint -1, of all are asked for again: one lost answer of a few dozen need not cost the
 * whole start. */
static bus_result read_again(servo_arm *arm, int joint, uint16_t address, uint16_t length, int64_t deadline_ns,
                             uint8_t *data, uint8_t *alerts)
{
    bus_result result = BUS_TIMEOUT;
    for (int i = 0; i < SETTING_TRIES && (result == BUS_TIMEOUT || result == BUS_CORRUPT); i++) {
        int64_t soon_ns = least(deadline_ns, serial_now_ns() + SETTING_NS);
        bus_registers one = {
            .ids = &arm->is.ids[joint < 0 ? 0 : joint], .servos = 1, .address = address, .length = length};
        result = joint < 0 ? servo_read(arm, arm->is.ids, address, length, soon_ns, data, alerts)
                           : bus_sync_read(servo_bus_of(arm, joint), &one, soon_ns, data, alerts);
    }
    return result;
}

/* One setting of one servo, whose register holds `found`: written where it differs and read back. */
static arm_result settle(servo_arm *arm, const servo_setting *setting, int joint, int32_t found, int64_t deadline_ns)
{
    int32_t wanted = setting->values[joint];
    if (!(setting->joints >> joint & 1) || found == wanted)
        return ARM_OK;
    uint8_t data[4], alert;
    servo_encode(setting->at, wanted, data);
    for (int i = 0; i < SETTING_TRIES; i++) { /* what a lost answer meant is read */
        uint8_t held[4];
        bus_result result = bus_write(servo_bus_of(arm, joint), arm->is.ids[joint], setting->at.address, data,
                                      setting->at.bytes, least(deadline_ns, serial_now_ns() + SETTING_NS));
        if (result != BUS_UNPLUGGED)
            result = read_again(arm, joint, setting->at.address, setting->at.bytes, deadline_ns, held, &alert);
        if (result != BUS_OK)
            return from_bus(result);
        found = servo_decode(setting->at, held);
        if (found == wanted)
            return ARM_OK;
    }
    arm->trouble = (arm_trouble){.joint = joint, .address = setting->at.address, .wanted = wanted, .found = found};
    return ARM_REFUSED;
}

/* Every setting is read; what differs is written and read back. ARM_REFUSED: arm->trouble says which. */
static arm_result settle_all(servo_arm *arm, int64_t deadline_ns)
{
    uint8_t data[ARM_JOINTS_MAX * BUS_READ_MAX], alerts[ARM_JOINTS_MAX];
    arm->trouble = (arm_trouble){.joint = -1};
    for (size_t first = 0, next; first < arm->n_settings; first = next) {
        /* Neighbours are read in one piece. */
        uint16_t start = arm->settings[first].at.address, end = start;
        for (next = first; next < arm->n_settings; next++) {
            uint16_t behind = arm->settings[next].at.address + arm->settings[next].at.bytes;
            if (behind - start > BUS_READ_MAX)
                break;
            end = behind;
        }
        uint16_t length = end - start;
        arm_result result = from_bus(read_again(arm, -1, start, length, deadline_ns, data, alerts));
        for (size_t k = first; k < next && result == ARM_OK; k++) {
            const servo_setting *setting = &arm->settings[k];
            for (int i = 0; i < arm->is.joints && result == ARM_OK; i++) {
                const uint8_t *bytes = data + i * length + (setting->at.address - start);
                result = settle(arm, setting, i, servo_decode(setting->at, bytes), deadline_ns);
            }
        }
        if (result != ARM_OK)
            return result;
    }
    return ARM_OK;
}

static arm_result torque_off(servo_arm *arm, int64_t deadline_ns)
{
    arm->armed = false;
    int64_t start = serial_now_ns();
    arm_result result = set_all(arm, arm->is.at.torque, 0, start + (deadline_ns - start) / 2);
    if (result == ARM_OK)
        return set_all(arm, arm->is.at.lock, 0, deadline_ns);
    /* One of them did not confirm: ask each alone, with an equal share of the time that is left. */
    result = ARM_OK;
    for (int i = 0; i < arm->is.joints; i++) {
        const uint8_t off = 0;
        int64_t now = serial_now_ns();
        int64_t share = now + (deadline_ns - now) / (arm->is.joints - i);
        bus_result one = bus_write(servo_bus_of(arm, i), arm->is.ids[i], arm->is.at.torque.address, &off, 1, share);
        if (one != BUS_OK)
            result = from_bus(one);
    }
    return result;
}

/* Goals, NULL: the present position, are written and read back: a tripped watchdog refuses them in silence. */
static arm_result start_from(servo_arm *arm, const int32_t *goals, int64_t deadline_ns)
{
    arm_reading reading;
    arm_result result = ARM_OK;
    if (goals == NULL) {
        result = read_arm(arm, deadline_ns, &reading);
        goals = reading.position;
    }
    if (result == ARM_OK)
        result = write_goals(arm, goals, deadline_ns);
    if (result != ARM_OK)
        return result;
    servo_register goal = arm->is.at.goal;
    uint8_t data[ARM_JOINTS_MAX * 4], alerts[ARM_JOINTS_MAX];
    result = from_bus(servo_read(arm, arm->is.ids, goal.address, goal.bytes, deadline_ns, data, alerts));
    for (int i = 0; i < arm->is.joints && result == ARM_OK; i++) {
        int64_t off = (int64_t)servo_decode(goal, data + i * goal.bytes) - goals[i];
        if (off > GOAL_TOLERANCE || off < -GOAL_TOLERANCE)
            result = ARM_WATCHDOG;
    }
    return result;
}

/* With `configured`, the settings are made sure of while the watchdogs are off: a tripped one refuses some of them. */
static arm_result start_anew(servo_arm *arm, bool configured, const int32_t *goals, int64_t deadline_ns)
{
    arm->clearing = true;
    arm_result result = set_all(arm, arm->is.at.watchdog, 0, deadline_ns);
    if (result == ARM_OK && configured)
        result = settle_all(arm, deadline_ns);
    if (result == ARM_OK)
        result = start_from(arm, goals, deadline_ns);
    if (result == ARM_OK)
        result = set_all(arm, arm->is.at.watchdog, arm->is.watchdog_on, deadline_ns);
    arm->clearing = result != ARM_OK;
    return result;
}

static arm_result clear_watchdog(void *context, const int32_t *goals, int64_t deadline_ns)
{
    return start_anew(context, false, goals, deadline_ns);
}

static arm_result set_torque(void *context, bool on, const int32_t *goals, int64_t deadline_ns)
{
    servo_arm *arm = context;
    arm->trouble = (arm_trouble){.joint = -1};
    if (!on)
        return torque_off(arm, deadline_ns);
    int64_t start = serial_now_ns();
    int64_t soon = deadline_ns - (deadline_ns - start) / 3; /* the rest is kept for taking it back */
    arm_result result = start_anew(arm, true, goals, soon);
    if (result != ARM_OK)
        return result;
    arm->armed = true;
    result = set_all(arm, arm->is.at.torque, 1, soon);
    if (result == ARM_OK)
        result = set_all(arm, arm->is.at.lock, 1, soon);
    if (result != ARM_OK)
        (void)torque_off(arm, deadline_ns); /* never half an arm under torque */
    return result;
}

static bool has_watchdog(const servo_arm *arm)
{
    return arm->is.at.watchdog.bytes > 0;
}

static arm_result check_watchdog(void *context, int64_t deadline_ns)
{
    servo_arm *arm = context;
    uint8_t data[ARM_JOINTS_MAX], alerts[ARM_JOINTS_MAX];
    servo_register where = has_watchdog(arm) ? arm->is.at.watchdog : arm->is.at.torque;
    bus_result result = servo_ask(arm, where.address, 1, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    arm_result verdict = ARM_OK;
    for (int i = 0; i < arm->is.joints; i++) {
        bool on = data[i] == (has_watchdog(arm) ? arm->is.watchdog_on : 1);
        if (has_watchdog(arm) && (data[i] == arm->is.watchdog_tripped || (arm->clearing && !on)))
            verdict = ARM_WATCHDOG;
        else if (arm->armed && !on) {
            arm->trouble = (arm_trouble){.joint = i};
            return ARM_REBOOTED; /* it has forgotten its watchdog or its torque, and with it its goal */
        }
    }
    return verdict;
}

/* From the first to the last of two registers, the second one none: the first alone. */
static servo_register span(servo_register first, servo_register last)
{
    if (last.bytes > 0)
        first.bytes = (uint8_t)(last.address + last.bytes - first.address);
    return first;
}

/* What is asked at a turn; bytes 0: this arm has no such turn. */
static servo_register turn_of(const servo_roles *at, arm_health_part part)
{
    switch (part) {
    case HEALTH_TORQUE:
        return span(at->torque, at->error);
    case HEALTH_GOALS:
        return at->goal;
    case HEALTH_WATCHDOG:
        return at->watchdog;
    default:
        return span(at->voltage, at->temperature);
    }
}

static void take_health(const servo_arm *arm, int i, const uint8_t *bytes, uint8_t alert, arm_health *out)
{
    const servo_roles *at = &arm->is.at;
    switch (out->part) {
    case HEALTH_TORQUE:
        out->torque[i] = bytes[0];
        out->error[i] = at->error.bytes > 0 ? bytes[at->error.address - at->torque.address] : alert;
        break;
    case HEALTH_GOALS:
        out->goals[i] = servo_decode(at->goal, bytes);
        break;
    case HEALTH_WATCHDOG:
        out->stopped[i] = bytes[0] == arm->is.watchdog_tripped            ? 1
                          : arm->armed && bytes[0] != arm->is.watchdog_on ? 2
                                                                          : 0;
        break;
    default:
        out->voltage[i] = (uint16_t)servo_decode(at->voltage, bytes);
        out->temperature[i] = bytes[at->temperature.address - at->voltage.address];
    }
}

static arm_result health(void *context, int64_t deadline_ns, arm_health *out)
{
    static const arm_health_part turns[] = {HEALTH_TORQUE, HEALTH_GOALS, HEALTH_WATCHDOG, HEALTH_SUPPLY};
    servo_arm *arm = context;
    servo_register what;
    arm_health_part part;
    do {
        part = turns[arm->asked++ % (sizeof turns / sizeof turns[0])];
        what = turn_of(&arm->is.at, part);
    } while (what.bytes == 0);
    uint8_t data[ARM_JOINTS_MAX * BUS_READ_MAX], alerts[ARM_JOINTS_MAX];
    bus_result result = servo_ask(arm, what.address, what.bytes, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    out->part = part;
    for (int i = 0; i < arm->is.joints; i++)
        take_health(arm, i, data + (size_t)i * what.bytes, alerts[i], out);
    return ARM_OK;
}

/* A servo that knows no reboot forgets what it shut down for without torque. */
static bus_result start_servo_anew(servo_arm *arm, int joint, int64_t deadline_ns)
{
    const uint8_t off = 0;
    if (arm->is.protocol->reboots)
        return bus_reboot(servo_bus_of(arm, joint), arm->is.ids[joint], deadline_ns);
    return bus_write(servo_bus_of(arm, joint), arm->is.ids[joint], arm->is.at.torque.address, &off, 1, deadline_ns);
}

static arm_result reboot(void *context, uint32_t joints, int64_t deadline_ns)
{
    servo_arm *arm = context;
    arm_result result = ARM_OK;
    for (int i = 0; i < arm->is.joints; i++)
        if (joints >> i & 1) /* not every firmware answers before it starts anew */
            (void)start_servo_anew(arm, i, least(deadline_ns, serial_now_ns() + REBOOT_ANSWER_NS));
    for (int i = 0; i < arm->is.joints; i++) {
        uint16_t model, firmware;
        /* The questions keep the other servos' watchdogs from stopping them. */
        while (joints >> i & 1 && (result = from_bus(bus_ping(servo_bus_of(arm, i), arm->is.ids[i],
                                                              least(deadline_ns, serial_now_ns() + REBOOT_ANSWER_NS),
                                                              &model, &firmware))) != ARM_OK)
            if (result == ARM_UNPLUGGED || serial_now_ns() >= deadline_ns)
                return result;
    }
    return result;
}

arm_port servo_arm_port(servo_arm *arm)
{
    return (arm_port){.context = arm,
                      .joints = arm->is.joints,
                      .velocity_unit = arm->is.velocity_unit,
                      .read = read_arm,
                      .write_goals = write_goals,
                      .set_torque = set_torque,
                      .check_watchdog = check_watchdog,
                      .clear_watchdog = clear_watchdog,
                      .health = health,
                      .reboot = reboot,
                      .trouble = &arm->trouble};
}
