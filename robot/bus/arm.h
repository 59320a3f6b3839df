/* SPDX-License-Identifier: Apache-2.0 */
/* What the control loop asks of an arm. Every call ends before its deadline,
 * whatever the bus does; the caller owns every struct; nothing allocates. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { ARM_JOINTS_MAX = 16, ARM_NAME_BYTES = 24 };

typedef enum {
    ARM_OK, ARM_TIMEOUT, ARM_CORRUPT, ARM_ALERT, ARM_WATCHDOG, ARM_UNPLUGGED, ARM_REBOOTED, ARM_REFUSED
} arm_result;

typedef struct {
    int64_t time_ns;              /* CLOCK_MONOTONIC when the reply was complete */
    int32_t position[ARM_JOINTS_MAX]; /* counts */
    int32_t velocity[ARM_JOINTS_MAX]; /* servo units */
    int16_t load[ARM_JOINTS_MAX];     /* servo units */
    uint8_t alert[ARM_JOINTS_MAX];    /* hardware alert bit of the status packet */
} arm_reading;

/* What the last `health` asked for; the others are as old as their last turn. */
typedef enum { HEALTH_NONE, HEALTH_TORQUE, HEALTH_WATCHDOG, HEALTH_GOALS, HEALTH_SUPPLY, HEALTH_PARTS } arm_health_part;

typedef struct {
    arm_health_part part;
    uint8_t torque[ARM_JOINTS_MAX];  /* HEALTH_TORQUE, as is the next */
    uint8_t error[ARM_JOINTS_MAX];   /* bits of the hardware error register */
    uint8_t stopped[ARM_JOINTS_MAX]; /* HEALTH_WATCHDOG: 1 stopped by itself, 2 rebooted since torque on */
    int32_t goals[ARM_JOINTS_MAX];                     /* HEALTH_GOALS, counts */
    uint16_t voltage[ARM_JOINTS_MAX];                  /* HEALTH_SUPPLY, 0.1 V */
    uint8_t temperature[ARM_JOINTS_MAX];               /* HEALTH_SUPPLY, degrees Celsius */
} arm_health;

/* Which servo a call failed at. Of ARM_REFUSED the setting, too: the other fields are 0 else. */
typedef struct {
    int32_t joint;    /* -1: no servo in particular */
    uint16_t address; /* of the register */
    int32_t wanted, found;
} arm_trouble;

typedef struct {
    void *context;
    int32_t joints; /* at most ARM_JOINTS_MAX: so many values has each array here */
    double velocity_unit; /* counts/s of one unit of velocity */
    /* ARM_OK and ARM_ALERT fill `out` completely; any other result leaves it untouched. */
    arm_result (*read)(void *context, int64_t deadline_ns, arm_reading *out);
    /* Goals are not answered on this bus: ARM_OK means sent, the next reading shows the effect. */
    arm_result (*write_goals)(void *context, const int32_t *goals, int64_t deadline_ns);
    /* On: every setting is read back first, rewritten where it differs, and the goals become `goals`, NULL: the present
     * position. Off: attempts every joint even if one fails. */
    arm_result (*set_torque)(void *context, bool on, const int32_t *goals, int64_t deadline_ns);
    /* After a gap: ARM_REBOOTED when a servo lost its torque and its settings, else ARM_WATCHDOG when one stopped by
     * itself and refuses goals. */
    arm_result (*check_watchdog)(void *context, int64_t deadline_ns);
    /* The goals become `goals`, NULL: the present position; then goals are accepted again. */
    arm_result (*clear_watchdog)(void *context, const int32_t *goals, int64_t deadline_ns);
    /* One question more about how the servos are, in rotation. `out` is untouched unless ARM_OK. */
    arm_result (*health)(void *context, int64_t deadline_ns, arm_health *out);
    /* Reboots the servos of `joints` (bits) and waits until each answers again; no torque. */
    arm_result (*reboot)(void *context, uint32_t joints, int64_t deadline_ns);
    const arm_trouble *trouble; /* of the last reading, torque switch or look at the watchdogs that failed */
    /* Does somebody watch who stops the servos when we fall silent? NULL: they stop by themselves. */
    bool (*guarded)(void *context, int64_t now_ns);
} arm_port;
