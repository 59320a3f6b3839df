/* SPDX-License-Identifier: Apache-2.0 */
#include "koch.h"

#include "packet.h"
#include "serial.h"

#include <string.h>

enum { READ_BYTES = 10, GOAL_BYTES = 4, WATCHDOG_TRIPPED = 0xFF, GOAL_TOLERANCE = 2 };
enum { SETTING_TRIES = 3 };
static const int64_t SETTING_NS = 20000000, REBOOT_ANSWER_NS = 20000000;
static const int64_t ANSWER_NS = 2000000; /* six servos answer in 1.5 ms: whoever was asked with less time left is not silent */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void koch_init(koch *koch, int fd, const uint8_t ids[ARM_JOINTS])
{
    memset(koch, 0, sizeof *koch);
    bus_init(&koch->bus, fd, &dynamixel2);
    memcpy(koch->ids, ids, ARM_JOINTS);
    koch->trouble.joint = -1;
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

/* A register's bytes, little endian, as a number; two bytes and four bytes are two's complement. */
static int32_t number(const uint8_t *bytes, uint16_t size)
{
    return size == 1 ? bytes[0] : size == 2 ? (int16_t)(bytes[0] | bytes[1] << 8) : signed32(bytes);
}

/* Registers of all six, in their order. Where one was silent, koch->trouble says which: behind it nobody speaks, so after
 * an answer of none the servos are asked from the other end. */
static bus_result ask_all(koch *koch, uint16_t address, uint16_t length, int64_t deadline_ns, uint8_t *data, uint8_t *alerts)
{
    uint8_t ids[ARM_JOINTS], found[ARM_JOINTS * BUS_READ_MAX], alert[ARM_JOINTS];
    for (int i = 0; i < ARM_JOINTS; i++)
        ids[i] = koch->ids[koch->backwards ? ARM_JOINTS - 1 - i : i];
    bus_registers what = {.ids = ids, .servos = ARM_JOINTS, .address = address, .length = length};
    int64_t asked_ns = serial_now_ns();
    koch->bus.answered = -1;
    bus_result result = bus_sync_read(&koch->bus, &what, deadline_ns, found, alert);
    int answered = koch->bus.answered;
    if (result == BUS_OK) {
        for (int i = 0; i < ARM_JOINTS; i++) {
            int at = koch->backwards ? ARM_JOINTS - 1 - i : i;
            memcpy(data + (size_t)i * length, found + (size_t)at * length, length);
            alerts[i] = alert[at];
        }
    } else if (answered >= 0 && deadline_ns - asked_ns >= ANSWER_NS) {
        bool one = answered > 0 && answered < ARM_JOINTS;
        koch->trouble = (arm_trouble){.joint = !one ? -1 : koch->backwards ? ARM_JOINTS - 1 - answered : answered};
        koch->backwards ^= answered == 0;
    }
    return result;
}

static arm_result read_arm(void *context, int64_t deadline_ns, arm_reading *out)
{
    koch *koch = context;
    /* One byte more every second time: a late answer to the same question then has the wrong length. */
    uint16_t length = READ_BYTES + (koch->reads++ & 1);
    uint8_t data[ARM_JOINTS * (READ_BYTES + 1)], alerts[ARM_JOINTS];
    bus_result result = ask_all(koch, KOCH_PRESENT_LOAD, length, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    out->time_ns = serial_now_ns();
    arm_result verdict = ARM_OK;
    for (int i = 0; i < ARM_JOINTS; i++) {
        const uint8_t *bytes = data + (size_t)i * length;
        out->load[i] = (int16_t)(bytes[0] | bytes[1] << 8);
        out->velocity[i] = signed32(bytes + 2);
        out->position[i] = signed32(bytes + 6);
        out->alert[i] = alerts[i] != 0;
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
        if (data[i] != value) {
            koch->trouble = (arm_trouble){.joint = i};
            return alerts[i] ? ARM_ALERT : ARM_CORRUPT;
        }
    return ARM_OK;
}

/* Settings are asked for again: one lost answer of a few dozen need not cost the whole start. */
static bus_result read_again(koch *koch, const bus_registers *what, int64_t deadline_ns, uint8_t *data, uint8_t *alerts)
{
    bus_result result = BUS_TIMEOUT;
    for (int i = 0; i < SETTING_TRIES && (result == BUS_TIMEOUT || result == BUS_CORRUPT); i++)
        result = bus_sync_read(&koch->bus, what, least(deadline_ns, serial_now_ns() + SETTING_NS), data, alerts);
    return result;
}

/* One setting of one servo, whose register holds `found`: written where it differs and read back. */
static arm_result settle(koch *koch, const koch_setting *setting, int joint, int32_t found, int64_t deadline_ns)
{
    int32_t wanted = setting->values[joint];
    if (!(setting->joints >> joint & 1) || found == wanted)
        return ARM_OK;
    uint8_t data[4], alert;
    for (int i = 0; i < 4; i++)
        data[i] = (uint8_t)((uint32_t)wanted >> (8 * i));
    bus_registers what = {.ids = &koch->ids[joint], .servos = 1, .address = setting->address, .length = setting->size};
    for (int i = 0; i < SETTING_TRIES; i++) { /* what a lost answer meant is read */
        uint8_t held[4];
        bus_result result = bus_write(&koch->bus, koch->ids[joint], setting->address, data, setting->size,
                                      least(deadline_ns, serial_now_ns() + SETTING_NS));
        if (result != BUS_UNPLUGGED)
            result = read_again(koch, &what, deadline_ns, held, &alert);
        if (result != BUS_OK)
            return from_bus(result);
        found = number(held, setting->size);
        if (found == wanted)
            return ARM_OK;
    }
    koch->trouble = (arm_trouble){.joint = joint, .address = setting->address, .wanted = wanted, .found = found};
    return ARM_REFUSED;
}

/* Every setting is read; what differs is written and read back. ARM_REFUSED: koch->trouble says which. */
static arm_result settle_all(koch *koch, int64_t deadline_ns)
{
    uint8_t data[ARM_JOINTS * BUS_READ_MAX], alerts[ARM_JOINTS];
    koch->trouble = (arm_trouble){.joint = -1};
    for (size_t first = 0, next; first < koch->n_settings; first = next) {
        /* Neighbours are read in one piece. */
        uint16_t start = koch->settings[first].address, end = start;
        for (next = first; next < koch->n_settings; next++) {
            uint16_t behind = koch->settings[next].address + koch->settings[next].size;
            if (behind - start > BUS_READ_MAX)
                break;
            end = behind;
        }
        bus_registers what = all(koch, start, end - start);
        arm_result result = from_bus(read_again(koch, &what, deadline_ns, data, alerts));
        for (size_t k = first; k < next && result == ARM_OK; k++) {
            const koch_setting *setting = &koch->settings[k];
            for (int i = 0; i < ARM_JOINTS && result == ARM_OK; i++) {
                const uint8_t *bytes = data + i * what.length + (setting->address - start);
                result = settle(koch, setting, i, number(bytes, setting->size), deadline_ns);
            }
        }
        if (result != ARM_OK)
            return result;
    }
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

/* With `configured`, the settings are made sure of while the watchdogs are off: a tripped one refuses some of them. */
static arm_result start_anew(koch *koch, bool configured, const int32_t *goals, int64_t deadline_ns)
{
    koch->clearing = true;
    arm_result result = set_all(koch, KOCH_BUS_WATCHDOG, 0, deadline_ns);
    if (result == ARM_OK && configured)
        result = settle_all(koch, deadline_ns);
    if (result == ARM_OK)
        result = start_from(koch, goals, deadline_ns);
    if (result == ARM_OK)
        result = set_all(koch, KOCH_BUS_WATCHDOG, KOCH_WATCHDOG_TICKS, deadline_ns);
    koch->clearing = result != ARM_OK;
    return result;
}

static arm_result clear_watchdog(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    return start_anew(context, false, goals, deadline_ns);
}

static arm_result set_torque(void *context, bool on, const int32_t goals[ARM_JOINTS], int64_t deadline_ns)
{
    koch *koch = context;
    koch->trouble = (arm_trouble){.joint = -1};
    if (!on)
        return torque_off(koch, deadline_ns);
    int64_t start = serial_now_ns();
    int64_t soon = deadline_ns - (deadline_ns - start) / 3; /* the rest is kept for taking it back */
    arm_result result = start_anew(koch, true, goals, soon);
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
    bus_result result = ask_all(koch, KOCH_BUS_WATCHDOG, 1, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    arm_result verdict = ARM_OK;
    for (int i = 0; i < ARM_JOINTS; i++) {
        bool on = data[i] == KOCH_WATCHDOG_TICKS;
        if (data[i] == WATCHDOG_TRIPPED || (koch->clearing && !on))
            verdict = ARM_WATCHDOG;
        else if (koch->armed && !on) {
            koch->trouble = (arm_trouble){.joint = i};
            return ARM_REBOOTED; /* it has forgotten its watchdog, and with it its goal and its torque */
        }
    }
    return verdict;
}

static arm_result health(void *context, int64_t deadline_ns, arm_health *out)
{
    static const struct {
        arm_health_part part;
        uint16_t address, length;
    } turns[] = {
        {HEALTH_TORQUE, KOCH_TORQUE_ENABLE, KOCH_ERROR_AT + 1},
        {HEALTH_GOALS, KOCH_GOAL_POSITION, GOAL_BYTES},
        {HEALTH_WATCHDOG, KOCH_BUS_WATCHDOG, 1},
        {HEALTH_SUPPLY, KOCH_SUPPLY, 3},
    };
    koch *koch = context;
    unsigned turn = koch->asked++ % (sizeof turns / sizeof turns[0]);
    uint8_t data[ARM_JOINTS * BUS_READ_MAX], alerts[ARM_JOINTS];
    uint16_t length = turns[turn].length;
    bus_result result = ask_all(koch, turns[turn].address, length, deadline_ns, data, alerts);
    if (result != BUS_OK)
        return from_bus(result);
    out->part = turns[turn].part;
    for (int i = 0; i < ARM_JOINTS; i++) {
        const uint8_t *bytes = data + (size_t)i * length;
        switch (out->part) {
        case HEALTH_TORQUE:
            out->torque[i] = bytes[0];
            out->error[i] = bytes[KOCH_ERROR_AT];
            break;
        case HEALTH_GOALS:
            out->goals[i] = signed32(bytes);
            break;
        case HEALTH_WATCHDOG:
            out->stopped[i] = bytes[0] == WATCHDOG_TRIPPED ? 1 : koch->armed && bytes[0] != KOCH_WATCHDOG_TICKS ? 2 : 0;
            break;
        default:
            out->voltage[i] = (uint16_t)(bytes[0] | bytes[1] << 8);
            out->temperature[i] = bytes[2];
        }
    }
    return ARM_OK;
}

static arm_result reboot(void *context, uint32_t joints, int64_t deadline_ns)
{
    koch *koch = context;
    arm_result result = ARM_OK;
    for (int i = 0; i < ARM_JOINTS; i++)
        if (joints >> i & 1) /* not every firmware answers before it starts anew */
            (void)bus_reboot(&koch->bus, koch->ids[i], least(deadline_ns, serial_now_ns() + REBOOT_ANSWER_NS));
    for (int i = 0; i < ARM_JOINTS; i++) {
        uint16_t model, firmware;
        /* The questions keep the other servos' watchdogs from stopping them. */
        while (joints >> i & 1 && (result = from_bus(bus_ping(&koch->bus, koch->ids[i],
                                                               least(deadline_ns, serial_now_ns() + REBOOT_ANSWER_NS), &model,
                                                               &firmware))) != ARM_OK)
            if (result == ARM_UNPLUGGED || serial_now_ns() >= deadline_ns)
                return result;
    }
    return result;
}

arm_port koch_port(koch *koch)
{
    return (arm_port){.context = koch,
                      .read = read_arm,
                      .write_goals = write_goals,
                      .set_torque = set_torque,
                      .check_watchdog = check_watchdog,
                      .clear_watchdog = clear_watchdog,
                      .health = health,
                      .reboot = reboot,
                      .trouble = &koch->trouble};
}
