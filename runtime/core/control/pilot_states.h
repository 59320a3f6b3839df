/* SPDX-License-Identifier: Apache-2.0 */
/* Between the halves of the pilot: its states, and what is done on command. For pilot.c and pilot_commands.c alone. */
#pragma once

#include "pilot.h"

enum { LOST_MANY = 3 }; /* readings lost in a row: nobody knows any more where the arm is */

static inline void enter(pilot *self, pilot_state state, pilot_reason reason, int32_t joint)
{
    self->state = state;
    self->reason = reason;
    self->joint = joint;
}

static inline bool armed(const pilot *self)
{
    return self->state != PILOT_DISARMED && self->state != PILOT_FAULT;
}

static inline void latch_hold(pilot *self, pilot_reason reason, int32_t joint)
{
    schedule_drop(&self->schedule);
    self->latched = true;
    enter(self, PILOT_HOLD, reason, joint);
}

/* The servos hold the arm where our goals say, and we can tell them others. */
static inline bool holds(const pilot *self)
{
    return self->torque && self->guard.started && !(self->state == PILOT_FAULT && self->reason == REASON_UNPLUGGED);
}

/* The command of this tick, and its answer. */
pilot_answer pilot_obey(pilot *self, const pilot_input *input, pilot_output *output);
/* A slow move to the pose, with the joints that have torque, also after a fault: a servo in alert need not leave the
 * arm up in the air. */
pilot_answer pilot_park(pilot *self, pilot_reason reason, int32_t joint);
/* After a `recover`: torque comes back with the alert gone. */
void pilot_recovered(pilot *self, const pilot_input *input, pilot_output *output);
void pilot_let_go(pilot *self, pilot_output *output);
