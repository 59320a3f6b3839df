/* SPDX-License-Identifier: Apache-2.0 */
/* An arm's registers: how values lie in them, and all servos asked and told at once, on one bus or on two. */
#include "servo_arm.h"

#include "serial.h"

#include <string.h>

static const int64_t ANSWER_NS = 333333; /* a servo takes 0.25 ms: whoever was asked with less time is not silent */

int32_t servo_buses(const servo_arm_description *description)
{
    return description->second < description->joints ? 2 : 1;
}

bus *servo_bus_of(servo_arm *arm, int joint)
{
    return &arm->buses[joint >= arm->is.second];
}

/* The joints of one bus lie together: from `first_of` on. */
static int first_of(const servo_arm *arm, int bus)
{
    return bus == 0 ? 0 : arm->is.second;
}

static bus_registers side(const servo_arm *arm, int bus, const uint8_t *ids, uint16_t address, uint16_t length)
{
    int first = first_of(arm, bus), end = bus == 0 ? arm->is.second : arm->is.joints;
    return (bus_registers){.ids = ids + first, .servos = (size_t)(end - first), .address = address, .length = length};
}

/* The worse of two; enough that one side fails. */
static bus_result worse(bus_result a, bus_result b)
{
    return a > b ? a : b;
}

bus_result servo_read(servo_arm *arm, const uint8_t *ids, uint16_t address, uint16_t length, int64_t deadline_ns,
                      uint8_t *data, uint8_t *alerts)
{
    bus_registers what[SERVO_BUSES_MAX];
    bus_question asked[SERVO_BUSES_MAX];
    bus_result result = BUS_OK;
    for (int k = 0; k < servo_buses(&arm->is); k++) {
        what[k] = side(arm, k, ids, address, length);
        asked[k] = bus_ask(&arm->buses[k], &what[k], deadline_ns);
    }
    for (int k = 0; k < servo_buses(&arm->is); k++) {
        int first = first_of(arm, k);
        result = worse(result, bus_take(&arm->buses[k], &asked[k], deadline_ns, data + first * length, alerts + first));
    }
    return result;
}

bus_result servo_write(servo_arm *arm, uint16_t address, uint16_t length, const uint8_t *data, int64_t deadline_ns)
{
    bus_result result = BUS_OK;
    for (int k = 0; k < servo_buses(&arm->is); k++) {
        bus_registers what = side(arm, k, arm->is.ids, address, length);
        result = worse(result, bus_sync_write(&arm->buses[k], &what, data + first_of(arm, k) * length, deadline_ns));
    }
    return result;
}

int32_t servo_decode(servo_register where, const uint8_t *bytes)
{
    uint32_t value = 0, bits = 8u * where.bytes;
    for (int i = 0; i < where.bytes; i++)
        value |= (uint32_t)bytes[i] << (8 * i);
    if (where.sign == SIGN_TWOS && bits < 32 && value >> (bits - 1))
        value |= ~0u << bits;
    if (where.sign > SIGN_NONE) {
        int32_t magnitude = (int32_t)(value & ((1u << where.sign) - 1));
        return value >> where.sign & 1 ? -magnitude : magnitude;
    }
    return (int32_t)value;
}

void servo_encode(servo_register where, int32_t value, uint8_t *bytes)
{
    uint32_t word = (uint32_t)value;
    if (where.sign > SIGN_NONE) {
        uint32_t most = (1u << where.sign) - 1, magnitude = value < 0 ? 0u - word : word;
        word = (magnitude < most ? magnitude : most) | (uint32_t)(value < 0) << where.sign;
    }
    for (int i = 0; i < where.bytes; i++)
        bytes[i] = (uint8_t)(word >> (8 * i));
}

/* Whose answer was missing on a bus that was asked, where it had the time to come: behind a silent servo nobody speaks,
 * so after an answer of none its servos are asked from the other end. Of two buses the silent one is told by its first
 * joint. */
static void note_silence(servo_arm *arm, int k, int64_t given_ns)
{
    int first = first_of(arm, k), n = (int)side(arm, k, arm->is.ids, 0, 0).servos, answered = arm->buses[k].answered;
    if (answered < 0 || given_ns < n * ANSWER_NS)
        return;
    int whole = servo_buses(&arm->is) > 1 ? first : -1;
    int joint = answered == n       ? -1
                : answered == 0     ? whole
                : arm->backwards[k] ? first + n - 1 - answered
                                    : first + answered;
    if (joint >= 0 || k == 0)
        arm->trouble = (arm_trouble){.joint = joint};
    arm->backwards[k] ^= answered == 0;
}

bus_result servo_ask(servo_arm *arm, uint16_t address, uint16_t length, int64_t deadline_ns, uint8_t *data,
                     uint8_t *alerts)
{
    const int n = arm->is.joints;
    uint8_t ids[ARM_JOINTS_MAX], place[ARM_JOINTS_MAX], found[ARM_JOINTS_MAX * BUS_READ_MAX], alert[ARM_JOINTS_MAX];
    for (int i = 0; i < n; i++) {
        int k = i >= arm->is.second, first = first_of(arm, k), end = k == 0 ? arm->is.second : n;
        place[i] = (uint8_t)(arm->backwards[k] ? first + end - 1 - i : i);
        ids[i] = arm->is.ids[place[i]];
    }
    int64_t asked_ns = serial_now_ns();
    for (int k = 0; k < servo_buses(&arm->is); k++)
        arm->buses[k].answered = -1;
    bus_result result = servo_read(arm, ids, address, length, deadline_ns, found, alert);
    for (int i = 0; i < n && result == BUS_OK; i++) {
        memcpy(data + (size_t)place[i] * length, found + (size_t)i * length, length);
        alerts[place[i]] = alert[i];
    }
    for (int k = 0; k < servo_buses(&arm->is) && result != BUS_OK; k++)
        note_silence(arm, k, deadline_ns - asked_ns);
    return result;
}
