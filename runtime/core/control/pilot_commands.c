/* SPDX-License-Identifier: Apache-2.0 */
/* What the operator may ask of the pilot, and when it is refused. */
#include "pilot_states.h"

static const int64_t recover_ns = 2000000000;

static pilot_answer arm(pilot *self, const pilot_input *input, pilot_output *output)
{
    if (self->state == PILOT_PLANNING || self->state == PILOT_MOVING)
        return ANSWER_DONE;
    bool fresh = self->state == PILOT_DISARMED || self->state == PILOT_FAULT;
    if (input->read_result != ARM_OK || self->lost > 0 || self->alerts != 0 || input->watchdog || input->damaged ||
        input->unattended || input->unguarded)
        return ANSWER_FAULT;
    if (self->guard.started && !guard_at_rest(&self->guard))
        return ANSWER_BUSY;
    if (fresh) {
        /* Out of torque or after a fault the arm may be anywhere: start from where it is. */
        int joint = -1;
        if (!guard_start(&self->guard, self->present, GUARD_START_TOLERANCE, &joint)) {
            self->reason = REASON_OUTSIDE;
            self->joint = joint;
            return ANSWER_OUTSIDE;
        }
        output->torque = TORQUE_ON;
    }
    schedule_arm(&self->schedule, input->tick);
    self->latched = false;
    self->moved = false;
    self->stopping = false;
    self->torque = true;
    self->let_go = false;
    self->idle_ns = input->now_ns;
    self->limp = 0;
    self->park_failed = self->cooled = false;
    self->recover_until_ns = 0;
    self->writer = input->writer;
    press_release(&self->press);
    enter(self, PILOT_PLANNING, REASON_NONE, -1);
    return ANSWER_DONE;
}

pilot_answer pilot_park(pilot *self, pilot_reason reason, int32_t joint)
{
    if (!self->config.has_park)
        return ANSWER_NO_POSE;
    if (!self->torque)
        return ANSWER_NOT_ARMED;
    if (!holds(self) || self->lost >= LOST_MANY || self->reason == REASON_FILES)
        return ANSWER_FAULT;
    if (self->reason == REASON_PARKED || self->state == PILOT_PARKING)
        return ANSWER_DONE;
    schedule_drop(&self->schedule);
    self->latched = true;
    self->park_failed = false;
    for (int i = 0; i < self->config.joints; i++)
        self->parking[i] = guard_place(&self->guard, i);
    enter(self, PILOT_PARKING, reason, joint);
    return ANSWER_DONE;
}

/* Whatever was going on ends: from here on the goals only slow down. */
static pilot_answer hold(pilot *self)
{
    if (!self->torque)
        return ANSWER_NOT_ARMED;
    if (!holds(self))
        return ANSWER_FAULT;
    self->stopping = false;
    self->recover_until_ns = 0;
    if (self->state != PILOT_FAULT && self->reason != REASON_PARKED) /* both hold already, and say why */
        latch_hold(self, REASON_OPERATOR, -1);
    return ANSWER_DONE;
}

/* Servos with an alert start anew; torque comes back at the first reading without one (`pilot_recovered`). */
static pilot_answer recover(pilot *self, const pilot_input *input, pilot_output *output)
{
    if (self->state != PILOT_FAULT && self->limp == 0)
        return ANSWER_DONE;
    if (self->lost >= LOST_MANY || input->damaged || self->reason == REASON_UNPLUGGED)
        return ANSWER_FAULT;
    if (self->guard.started && !guard_at_rest(&self->guard))
        return ANSWER_BUSY;
    output->reboot = self->alerts;
    self->recover_until_ns = input->now_ns + recover_ns;
    return ANSWER_DONE;
}

void pilot_recovered(pilot *self, const pilot_input *input, pilot_output *output)
{
    if (self->recover_until_ns == 0 || output->reboot != 0)
        return;
    bool over = input->now_ns > self->recover_until_ns || (self->lost == 0 && input->read_result == ARM_ALERT);
    if (over)
        self->recover_until_ns = 0;
    if (over || self->lost > 0)
        return;
    int joint;
    self->recover_until_ns = 0;
    if (!self->torque) {
        enter(self, PILOT_DISARMED, REASON_NONE, -1);
        self->latched = false;
    } else if (self->guard.started || guard_start(&self->guard, self->present, GUARD_START_TOLERANCE, &joint)) {
        /* It fell, or was moved by hand; the others hold what they held. */
        for (int i = 0; i < self->config.joints; i++)
            if (self->limp >> i & 1)
                guard_start_joint(&self->guard, i, self->present[i]);
        output->torque = TORQUE_ON;
        press_release(&self->press); /* where it led back to before is not where it stands now */
        latch_hold(self, REASON_OPERATOR, -1);
    }
    self->limp = 0;
}

void pilot_let_go(pilot *self, pilot_output *output)
{
    schedule_drop(&self->schedule);
    self->torque = false;
    self->let_go = true;
    self->latched = false;
    self->guard.started = false;
    enter(self, PILOT_DISARMED, REASON_OPERATOR, -1);
    output->torque = TORQUE_OFF;
}

pilot_answer pilot_obey(pilot *self, const pilot_input *input, pilot_output *output)
{
    switch (input->command) {
    case COMMAND_NONE:
        return ANSWER_NONE;
    case COMMAND_PING:
        return ANSWER_DONE;
    case COMMAND_ARM:
        return arm(self, input, output);
    case COMMAND_HOLD:
    case COMMAND_REDO:
        return hold(self);
    case COMMAND_PARK:
        return pilot_park(self, REASON_OPERATOR, -1);
    case COMMAND_PARK_IDLE:
        return pilot_park(self, REASON_IDLE, -1);
    case COMMAND_STOP:
        self->stopping = true;
        self->park_failed = false;
        if (armed(self) && self->reason != REASON_PARKED && self->state != PILOT_PARKING)
            latch_hold(self, REASON_OPERATOR, -1);
        return ANSWER_DONE;
    case COMMAND_RECOVER:
        return recover(self, input, output);
    case COMMAND_TORQUE_OFF:
        if (!self->let_go && self->reason != REASON_PARKED)
            return ANSWER_NOT_PARKED;
        pilot_let_go(self, output);
        return ANSWER_DONE;
    case COMMAND_TORQUE_OFF_NOW:
        pilot_let_go(self, output);
        return ANSWER_DONE;
    }
    return ANSWER_NONE;
}
