/* SPDX-License-Identifier: Apache-2.0 */
/* What the slow questions to the servos say: torque, goals, watchdogs, supply, temperature. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arm.h"

enum {
    HEALTH_STRIKES = 2,      /* goals and voltage must be wrong so often in a row: one write may be lost */
    HEALTH_WARM_MARGIN = 10, /* degrees below the servo's own limit: a warning */
    HEALTH_HOT_MARGIN = 3,   /* degrees below it: the arm is parked before it lets go by itself */
};

typedef enum {
    FINDING_NONE,
    FINDING_NO_TORQUE, /* a servo has no torque though it was switched on: it rebooted, or shut down */
    FINDING_DEAF,      /* a servo does not take goals */
    FINDING_STOPPED,   /* a bus watchdog has stopped it */
    FINDING_WARM,
    FINDING_VOLTAGE,   /* its supply is outside its limits */
    FINDING_HOT,
    FINDING_ALERT,     /* a servo has no torque, and its status says why */
} finding_kind;

typedef struct {
    finding_kind kind;
    int32_t joint; /* -1: none */
} health_finding;

typedef struct {
    int32_t temperature;              /* the servo's own limit, degrees Celsius; 0: not known */
    int32_t voltage_min, voltage_max; /* 0.1 V; both 0: not known */
} health_limits;

typedef struct {
    uint8_t deaf[ARM_JOINTS_MAX], starved[ARM_JOINTS_MAX]; /* strikes in a row */
} health_watch;

/* Judges the part of `health` that was asked for last. `sent`: the goals that lie in the servos if they took them,
 * NULL: not known. `without`: joints (bits) that are known to have no torque. */
health_finding health_judge(health_watch *self, const arm_health *health, const health_limits *limits, int joints,
                            const int32_t *sent, uint32_t without);
