/* SPDX-License-Identifier: Apache-2.0 */
/* An arm of servos on one bus or two as an arm_port; its description (robot/arms/) tells which registers it has. */
#pragma once

#include "arm.h"
#include "bus.h"

enum {
    SERVO_SETTINGS_MAX = 24,
    SERVO_BUSES_MAX = 2,
    SIGN_NONE = 0,  /* of a register: unsigned */
    SIGN_TWOS = -1, /* two's complement; any other number: the bit that says minus, above the magnitude */
};

/* Where a value lies; bytes 0: the servos have none. */
typedef struct {
    uint16_t address;
    uint8_t bytes; /* 1, 2 or 4 */
    int16_t sign;
} servo_register;

/* The registers by what they are for. `load`, `velocity` and `position` lie in `block`, which is read every tick. */
typedef struct {
    servo_register torque, goal, block, load, velocity, position, voltage, temperature;
    servo_register error;    /* none: the status's error byte is it */
    servo_register watchdog; /* none: the servos hold their last goal, however long nobody speaks */
    servo_register lock;     /* of the EEPROM: 1 beside torque, 0 without; none: torque itself locks it */
} servo_roles;

typedef struct {
    const servo_protocol *protocol;
    int32_t joints;
    int32_t second; /* the first joint on the second bus; with `joints`: there is one bus */
    uint8_t ids[ARM_JOINTS_MAX];
    servo_roles at;
    double velocity_unit;                  /* counts/s */
    uint8_t watchdog_on, watchdog_tripped; /* what its register is set to, and reads when it has stopped a servo */
} servo_arm_description;

/* One register that must hold a value whenever there is torque: a servo whose voltage broke down has forgotten it. */
typedef struct {
    servo_register at;
    int32_t values[ARM_JOINTS_MAX];
    uint32_t joints; /* bits: which servos it is for */
} servo_setting;

typedef struct {
    bus buses[SERVO_BUSES_MAX];
    servo_arm_description is;
    servo_setting settings[SERVO_SETTINGS_MAX]; /* by rising address */
    size_t n_settings;
    arm_trouble trouble;
    unsigned asked;  /* turns of the health rotation */
    unsigned reads;  /* alternates the read length */
    bool armed;      /* torque was switched on through this struct and not off since */
    bool backwards[SERVO_BUSES_MAX]; /* its servos are asked from the last to the first */
    bool clearing;   /* the watchdogs were switched off to clear them and not yet seen on again */
} servo_arm;

/* fds: a port for each bus. */
void servo_arm_init(servo_arm *arm, const int *fds, const servo_arm_description *description);
/* The functions of arm.h with `arm` as their context; `arm` outlives the port. */
arm_port servo_arm_port(servo_arm *arm);

/* servo_lines.c */
int32_t servo_buses(const servo_arm_description *description);
bus *servo_bus_of(servo_arm *arm, int joint);
int32_t servo_decode(servo_register where, const uint8_t *bytes);
void servo_encode(servo_register where, int32_t value, uint8_t *bytes);
/* Registers of the servos `ids`, `data` [joints][length]: every question goes out before an answer is read. */
bus_result servo_read(servo_arm *arm, const uint8_t *ids, uint16_t address, uint16_t length, int64_t deadline_ns,
                      uint8_t *data, uint8_t *alerts);
/* Registers of all servos, in their order. Where one was silent, arm->trouble says which. */
bus_result servo_ask(servo_arm *arm, uint16_t address, uint16_t length, int64_t deadline_ns, uint8_t *data,
                     uint8_t *alerts);
bus_result servo_write(servo_arm *arm, uint16_t address, uint16_t length, const uint8_t *data, int64_t deadline_ns);
