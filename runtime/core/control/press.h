/* SPDX-License-Identifier: Apache-2.0 */
/* How hard the joints press: goals that lead the joints further than gravity explains.
 *
 * A servo's force grows with the lead of its goal, |goal - present|. Held still against gravity a joint needs some of
 * it (`gravity`, with what it may carry). Two rules follow. Stall: a lead beyond `stall` during which the joint does
 * not move is an obstacle. Lead back: after a hold or a fault the goal comes back, once, to where the joint stands plus
 * what gravity needs; never a second time, or the arm would sink by a lead each time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arm.h"

enum { PRESS_STILL_COUNTS = 2, PRESS_MOVED_COUNTS = 8 };
#define PRESS_STILL_NS 60000000LL /* a joint that has not moved for so long stands */

typedef struct {
    int32_t gravity; /* counts of lead that are allowed at rest */
    int32_t stall;   /* counts of lead that are an obstacle; 0: never (a gripper holds what it has closed on) */
} press_limits;

typedef struct {
    press_limits limits[ARM_JOINTS_MAX];
    int32_t joints;
    int64_t stall_ns;              /* how long a joint may press without moving */
    int32_t at[ARM_JOINTS_MAX];        /* where each was when it last moved */
    int64_t at_ns[ARM_JOINTS_MAX];     /* since when it is there */
    int32_t from[ARM_JOINTS_MAX];      /* where it began to press */
    int64_t pressing_ns[ARM_JOINTS_MAX]; /* since when, -1: it does not */
    uint32_t returned;             /* joints (bits) whose goal was led back */
    int32_t rest[ARM_JOINTS_MAX];      /* to here */
} press;

void press_init(press *self, const press_limits *limits, int joints, int64_t stall_ns);
/* Goals move again: the next hold may lead them back again. */
void press_release(press *self);
/* Takes note of a reading. The joint that has pressed for too long, -1: none. `without`: bits of limp joints. */
int press_stalled(press *self, const int32_t *goals, const int32_t *present, uint32_t without, int64_t now_ns);
/* Of goals at rest: where they are to go; true while one is not there. Each joint's turn comes when it stands. */
bool press_lead_back(press *self, const int32_t *goals, const int32_t *present, uint32_t without, int64_t now_ns,
                     int32_t *wish);
