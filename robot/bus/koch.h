/* The Koch v1.1 follower's six servos as an arm_port. */
#ifndef VLA_KOCH_H
#define VLA_KOCH_H

#include "arm.h"
#include "bus.h"

enum {
    KOCH_TORQUE_ENABLE = 64,
    KOCH_BUS_WATCHDOG = 98,
    KOCH_GOAL_POSITION = 116,
    KOCH_PRESENT_LOAD = 126, /* 2 bytes load or current, 4 velocity, 4 position */
    KOCH_WATCHDOG_TICKS = 10, /* of 20 ms: the arm stops by itself 200 ms after the last request */
};

typedef struct {
    bus bus;
    uint8_t ids[ARM_JOINTS];
    unsigned reads;  /* alternates the read length */
    bool armed;      /* torque was switched on through this struct and not off since */
    bool clearing;   /* the watchdogs were switched off to clear them and not yet seen on again */
} koch;

void koch_init(koch *koch, int fd, const uint8_t ids[ARM_JOINTS]);

/* The functions of arm.h with `koch` as their context; `koch` outlives the port. */
arm_port koch_port(koch *koch);

#endif
