#include "pilot.h"

#include <math.h>
#include <string.h>

enum { PARK_LEAD = 64 }; /* counts the parking wish may lead the goal by */

guard_config_error pilot_init(pilot *self, const pilot_config *config, int *joint)
{
    memset(self, 0, sizeof *self);
    self->config = *config;
    self->joint = -1;
    self->lost_ns = -1;
    self->patience_ns = config->patience_min_ns;
    schedule_init(&self->schedule, &config->schedule);
    return guard_configure(&self->guard, config->limits, config->period_ns, joint);
}

static void enter(pilot *self, pilot_state state, pilot_reason reason, int32_t joint)
{
    self->state = state;
    self->reason = reason;
    self->joint = joint;
}

static bool armed(const pilot *self)
{
    return self->state != PILOT_DISARMED && self->state != PILOT_FAULT;
}

/* A fault keeps the torque and slows down: where an arm is under gravity, letting go is worse. */
static void fault(pilot *self, pilot_reason reason, int32_t joint)
{
    bool known = self->state == PILOT_FAULT && self->reason == REASON_UNPLUGGED; /* nothing newer can be learnt then */
    schedule_drop(&self->schedule);
    self->latched = true;
    if (!known)
        enter(self, PILOT_FAULT, reason, joint);
}

static void latch_hold(pilot *self, pilot_reason reason)
{
    schedule_drop(&self->schedule);
    self->latched = true;
    enter(self, PILOT_HOLD, reason, -1);
}

/* The servos stopped by themselves: they heard nothing for 200 ms. After a short loss of readings that is the loss
 * itself and the plan goes on from where the arm stands; otherwise we were gone, and that is a fault. */
static void take_watchdog(pilot *self, const pilot_input *input, pilot_output *output)
{
    bool outage = !input->absent && self->lost > 0 && input->now_ns - self->lost_ns < self->config.reads_latch_ns;
    if (!outage || !armed(self) || self->latched)
        fault(self, REASON_WATCHDOG, -1);
    output->clear_watchdog = true;
}

static void take_reading(pilot *self, const pilot_input *input)
{
    bool answered = input->read_result == ARM_OK || input->read_result == ARM_ALERT;
    if (answered) {
        memcpy(self->present, input->reading.position, sizeof self->present);
        self->present_known = true;
        self->present_ns = input->reading.time_ns;
        self->lost = 0;
        self->lost_ns = -1;
        schedule_note_reading(&self->schedule, input->tick, input->reading.time_ns, self->present);
        for (int i = 0; i < ARM_JOINTS; i++)
            if (input->reading.alert[i]) {
                fault(self, REASON_ALERT, i);
                break;
            }
    } else {
        if (self->lost++ == 0)
            self->lost_ns = input->now_ns;
        bool stands = self->latched && self->state != PILOT_PARKING;
        if (armed(self) && !stands && input->now_ns - self->lost_ns >= self->config.reads_latch_ns)
            latch_hold(self, REASON_READS_LOST);
    }
    if (input->read_result == ARM_UNPLUGGED || input->unplugged)
        fault(self, REASON_UNPLUGGED, -1);
    if (input->torque_failed)
        fault(self, REASON_TORQUE, -1);
}

static pilot_answer arm(pilot *self, const pilot_input *input, pilot_output *output)
{
    if (self->state == PILOT_PLANNING || self->state == PILOT_MOVING)
        return ANSWER_DONE;
    bool fresh = self->state == PILOT_DISARMED || self->state == PILOT_FAULT;
    if (input->read_result != ARM_OK || input->watchdog)
        return ANSWER_FAULT;
    for (int i = 0; i < ARM_JOINTS; i++)
        if (input->reading.alert[i])
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
    enter(self, PILOT_PLANNING, REASON_NONE, -1);
    return ANSWER_DONE;
}

static pilot_answer park(pilot *self)
{
    if (!self->config.has_park)
        return ANSWER_NO_POSE;
    if (!armed(self))
        return ANSWER_NOT_ARMED;
    if (self->reason == REASON_PARKED || self->state == PILOT_PARKING)
        return ANSWER_DONE;
    schedule_drop(&self->schedule);
    self->latched = true;
    for (int i = 0; i < ARM_JOINTS; i++)
        self->parking[i] = self->guard.joints[i].goal;
    enter(self, PILOT_PARKING, REASON_OPERATOR, -1);
    return ANSWER_DONE;
}

static pilot_answer torque_off(pilot *self, pilot_output *output)
{
    schedule_drop(&self->schedule);
    self->torque = false;
    self->let_go = true;
    self->latched = false;
    self->guard.started = false;
    enter(self, PILOT_DISARMED, REASON_OPERATOR, -1);
    output->torque = TORQUE_OFF;
    return ANSWER_DONE;
}

static pilot_answer obey(pilot *self, const pilot_input *input, pilot_output *output)
{
    switch (input->command) {
    case COMMAND_NONE:
        return ANSWER_NONE;
    case COMMAND_PING:
        return ANSWER_DONE;
    case COMMAND_ARM:
        return arm(self, input, output);
    case COMMAND_HOLD:
        if (!armed(self))
            return ANSWER_NOT_ARMED;
        latch_hold(self, REASON_OPERATOR);
        return ANSWER_DONE;
    case COMMAND_PARK:
        return park(self);
    case COMMAND_STOP:
        self->stopping = true;
        if (armed(self) && self->reason != REASON_PARKED && self->state != PILOT_PARKING)
            latch_hold(self, REASON_OPERATOR);
        return ANSWER_DONE;
    case COMMAND_TORQUE_OFF:
        if (!self->let_go && self->reason != REASON_PARKED)
            return ANSWER_NOT_PARKED;
        return torque_off(self, output);
    case COMMAND_TORQUE_OFF_NOW:
        return torque_off(self, output);
    }
    return ANSWER_NONE;
}

void pilot_begin(pilot *self, const pilot_input *input, pilot_output *output)
{
    memset(output, 0, sizeof *output);
    int64_t patience = input->patience_ns > self->config.patience_min_ns ? input->patience_ns : self->config.patience_min_ns;
    self->patience_ns = patience < self->config.patience_max_ns ? patience : self->config.patience_max_ns;
    if (input->unsent)
        guard_unsent(&self->guard);
    if (input->watchdog)
        take_watchdog(self, input, output); /* before the reading ends the loss */
    take_reading(self, input);
    const schedule_plan *plan = &self->schedule.plans[self->schedule.current];
    if (plan->present && plan->data.observation_sequence <= input->dropped_through)
        schedule_drop(&self->schedule);
    output->answer = obey(self, input, output);
}

chunk_verdict pilot_offer(pilot *self, const pilot_input *input, const chunk *data)
{
    if (!armed(self) || self->latched)
        return CHUNK_NOT_ARMED;
    schedule_view view = {
        .tick = input->tick,
        .now_ns = input->now_ns,
        .age_limit_ns = self->patience_ns,
        .present = self->lost == 0 && self->present_known ? self->present : NULL,
    };
    return schedule_offer(&self->schedule, data, &view);
}

/* The next wish of the slow move, in joint units; true when the pose was reached. */
static bool creep(pilot *self, float action[ARM_JOINTS])
{
    double step = self->config.park_speed * (double)self->config.period_ns * 1e-9;
    bool there = true;
    for (int i = 0; i < ARM_JOINTS; i++) {
        const guard_limits *limits = &self->config.limits[i];
        double pose = fmin(fmax(self->config.park[i], limits->position_min), limits->position_max);
        double gap = pose - self->parking[i];
        if (fabs(self->parking[i] - self->guard.joints[i].goal) < PARK_LEAD) /* the wish waits for the goal */
            self->parking[i] += fabs(gap) <= step ? gap : copysign(step, gap);
        action[i] = (float)((self->parking[i] - limits->offset) / limits->scale);
        there = there && self->parking[i] == pose && fabs(pose - self->guard.joints[i].goal) <= 1.0;
    }
    return there && guard_at_rest(&self->guard);
}

/* Where no action is followed: PLANNING or HOLD, and the latch. */
static void idle(pilot *self, const pilot_input *input, bool malformed)
{
    if (self->latched)
        return;
    if (self->state == PILOT_MOVING)
        self->idle_ns = input->now_ns;
    else if (self->reason == REASON_MALFORMED)
        malformed = true; /* stays told until an action is due again */
    pilot_reason reason = malformed ? REASON_MALFORMED : self->lost >= 3 ? REASON_READS_LOST : REASON_NO_ACTION;
    bool waits = reason == REASON_NO_ACTION && (input->plan_then_move || !self->moved);
    if (input->now_ns - self->idle_ns >= self->patience_ns)
        latch_hold(self, reason);
    else
        enter(self, waits ? PILOT_PLANNING : PILOT_HOLD, waits ? REASON_NONE : reason, -1);
}

static void stop(pilot *self, const pilot_input *input, pilot_output *output)
{
    bool rests = self->guard.started ? guard_at_rest(&self->guard) : true;
    if (!self->stopping || !rests || self->state == PILOT_PARKING)
        return;
    if (self->reason == REASON_PARKED)
        torque_off(self, output); /* a parked arm rests by itself */
    else if (armed(self) && self->config.has_park && self->lost > 0
             && input->now_ns - self->lost_ns < self->config.reads_latch_ns)
        return; /* the pose cannot be gone to blindly: readings may come back */
    else if (armed(self) && self->lost == 0 && park(self) == ANSWER_DONE)
        return;
    output->done = true;
}

void pilot_end(pilot *self, const pilot_input *input, pilot_output *output)
{
    guard_view view = {
        .present = self->present_known ? self->present : NULL,
        .present_ns = self->present_ns,
        .now_ns = input->now_ns,
    };
    if (output->clear_watchdog && self->present_known) {
        /* The servos stand where they were stopped. One that was moved away from there is left to stand. */
        int joint = -1;
        if (!guard_start(&self->guard, self->present, GUARD_SAG, &joint)) {
            fault(self, REASON_OUTSIDE, joint);
            output->clear_watchdog = false;
        }
    }
    int32_t before[ARM_JOINTS];
    for (int i = 0; i < ARM_JOINTS; i++)
        before[i] = self->guard.joints[i].goal;

    bool parked = false;
    if (input->malformed) /* the writer is broken: what it wrote before counts no more */
        schedule_drop(&self->schedule);
    output->action = schedule_due(&self->schedule, input->tick);
    if (self->state == PILOT_PARKING) {
        parked = creep(self, output->action.action);
        output->action.due = true;
    }
    if (!self->guard.started) {
        output->guard = (guard_result){.verdict = GUARD_PASSED, .joint = -1};
        memcpy(output->guard.goals, before, sizeof before);
    } else if (output->action.due && output->torque == TORQUE_KEEP) {
        output->guard = guard_step(&self->guard, output->action.action, ARM_JOINTS, &view);
    } else {
        output->guard = guard_brake(&self->guard); /* also in the tick of arming: the first goal is the present position */
    }
    bool refused = output->guard.verdict >= GUARD_REFUSED_NOT_FINITE;
    bool malformed = input->malformed;
    if (output->guard.verdict == GUARD_REFUSED_NOT_FINITE) {
        malformed = true;
        schedule_drop(&self->schedule);
    }
    if (self->state == PILOT_PARKING) {
        if (parked)
            enter(self, PILOT_HOLD, REASON_PARKED, -1);
    } else if (output->action.due && !refused && armed(self) && !self->latched) {
        self->moved = true;
        enter(self, PILOT_MOVING, REASON_NONE, -1);
    } else if (armed(self)) {
        idle(self, input, malformed);
    }
    schedule_note_goal(&self->schedule, input->tick, memcmp(before, output->guard.goals, sizeof before) != 0);
    stop(self, input, output);

    output->state = self->state;
    output->reason = self->reason;
    output->joint = self->joint;
    output->latched = self->latched;
    output->write = self->torque && self->guard.started && !(self->state == PILOT_FAULT && self->reason == REASON_UNPLUGGED);
}
