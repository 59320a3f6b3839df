/* SPDX-License-Identifier: Apache-2.0 */
/* The Koch v1.1 follower's six servos as an arm_port. */
#ifndef VLA_KOCH_H
#define VLA_KOCH_H

#include "arm.h"
#include "bus.h"

enum {
    KOCH_TORQUE_ENABLE = 64, /* 1 byte; the hardware error register is KOCH_ERROR_AT bytes on */
    KOCH_ERROR_AT = 6,
    KOCH_BUS_WATCHDOG = 98,
    KOCH_GOAL_POSITION = 116,
    KOCH_PRESENT_LOAD = 126, /* 2 bytes load or current, 4 velocity, 4 position */
    KOCH_SUPPLY = 144, /* 2 bytes voltage, 1 temperature */
    KOCH_SETTINGS_MAX = 16,
    KOCH_WATCHDOG_TICKS = 10, /* of 20 ms: the arm stops by itself 200 ms after the last request */
};

/* One RAM register that must hold a value whenever there is torque: a servo whose voltage broke down has forgotten it. */
typedef struct {
    uint16_t address, size; /* 1, 2 or 4 bytes */
    int32_t values[ARM_JOINTS];
    uint8_t joints; /* bits: which servos it is for */
} koch_setting;

typedef struct {
    bus bus;
    uint8_t ids[ARM_JOINTS];
    koch_setting settings[KOCH_SETTINGS_MAX]; /* by rising address */
    size_t n_settings;
    arm_trouble trouble;
    unsigned asked;  /* turns of the health rotation */
    unsigned reads;  /* alternates the read length */
    bool armed;      /* torque was switched on through this struct and not off since */
    bool backwards;  /* the servos are asked from the last to the first */
    bool clearing;   /* the watchdogs were switched off to clear them and not yet seen on again */
} koch;

void koch_init(koch *koch, int fd, const uint8_t ids[ARM_JOINTS]);

/* The functions of arm.h with `koch` as their context; `koch` outlives the port. */
arm_port koch_port(koch *koch);

#endif
