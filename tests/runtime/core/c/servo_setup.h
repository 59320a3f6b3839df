/* SPDX-License-Identifier: Apache-2.0 */
/* The registers of the servos in tests of the bus, as robot/arms describes them. */
#pragma once

#include "servo_arm.h"

/* Dynamixel X330, of a koch. */
#define X330                                                                                                           \
    .protocol = &dynamixel2, .watchdog_on = 10, .watchdog_tripped = 255,                                               \
    .at = {.torque = {64, 1, SIGN_NONE},                                                                               \
           .goal = {116, 4, SIGN_TWOS},                                                                                \
           .block = {126, 10, SIGN_NONE},                                                                              \
           .load = {126, 2, SIGN_TWOS},                                                                                \
           .velocity = {128, 4, SIGN_TWOS},                                                                            \
           .position = {132, 4, SIGN_TWOS},                                                                            \
           .voltage = {144, 2, SIGN_NONE},                                                                             \
           .temperature = {146, 1, SIGN_NONE},                                                                         \
           .error = {70, 1, SIGN_NONE},                                                                                \
           .watchdog = {98, 1, SIGN_NONE}}

/* Feetech STS3215, of an SO-101. */
#define STS3215                                                                                                        \
    .protocol = &feetech0, .at = {.torque = {40, 1, SIGN_NONE},                                                        \
                                  .goal = {42, 2, 15},                                                                 \
                                  .block = {56, 15, SIGN_NONE},                                                        \
                                  .load = {60, 2, 10},                                                                 \
                                  .velocity = {58, 2, 15},                                                             \
                                  .position = {56, 2, 15},                                                             \
                                  .voltage = {62, 1, SIGN_NONE},                                                       \
                                  .temperature = {63, 1, SIGN_NONE},                                                   \
                                  .lock = {55, 1, SIGN_NONE}}
