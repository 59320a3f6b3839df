/* SPDX-License-Identifier: Apache-2.0 */
#include "pilot_states.h"

#include <math.h>
#include <string.h>

enum { PARK_LEAD = 64 };     /* counts the parking wish may lead the goal by */
enum { TRAVEL_COUNTS = 64 }; /* what a reading may be off by besides what a joint can travel */

guard_config_error pilot_init(pilot *self, const pilot_config *config, int *joint)
{
    memset(self, 0, sizeof *self);
    self->config = *config;
    self->joint = -1;
    self->lost_ns = -1;
    self->patience_ns = config->patience_min_ns;
    *joint = -1;
    if (config->joints < 1 || config->joints > ARM_JOINTS_MAX)
        return GUARD_CONFIG_RANGE;
    press_init(&self->press, config->press, config->joints, config->stall_ns);
    schedule_init(&self->schedule, &config->schedule, config->period_ns, config->action_ns);
    guard_config_error error = guard_configure(&self->guard, config->limits, config->joints, config->period_ns,
                                               (guard_version)config->guard_version, joint);
    for (int i = 0; i < config->joints && error == GUARD_CONFIG_OK && config->rounds_corners; i++)
        schedule_round_corners(&self->schedule, i, guard_corner(&self->guard, i));
    return error;
}

/* A fault keeps the torque and slows down: where an arm is under gravity, letting go is worse. */
static void fault(pilot *self, pilot_reason reason, int32_t joint)
{
    /* Nothing newer can be learnt of a bus that is gone; and where a setting was refused, that is why there is no
     * torque. */
    bool follows = self->reason == REASON_SETTING && (reason == REASON_TORQUE || reason == REASON_WATCHDOG);
    bool known = self->state == PILOT_FAULT && (self->reason == REASON_UNPLUGGED || follows);
    schedule_drop(&self->schedule);
    self->latched = true;
    if (!known)
        enter(self, PILOT_FAULT, reason, joint);
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

/* Can the joints have come from `position` to this reading? */
static bool reachable(const pilot *self, const arm_reading *reading, const int32_t *position, int64_t since_ns)
{
    for (int i = 0; i < self->config.joints; i++) {
        double most = self->config.travel[i] * (double)(reading->time_ns - since_ns) * 1e-9 + TRAVEL_COUNTS;
        if (self->config.travel[i] > 0 && fabs((double)reading->position[i] - position[i]) > most)
            return false;
    }
    return true;
}

/* A reading further from the last than the joints can travel is used when the next one confirms it. */
static bool believable(pilot *self, const arm_reading *reading)
{
    bool confirmed = self->suspect_known && reachable(self, reading, self->suspect, self->suspect_ns);
    if (!self->present_known || confirmed || reachable(self, reading, self->present, self->present_ns)) {
        self->suspect_known = false;
        return true;
    }
    memcpy(self->suspect, reading->position, sizeof self->suspect);
    self->suspect_ns = reading->time_ns;
    self->suspect_known = true;
    return false;
}

static void take_reading(pilot *self, const pilot_input *input, bool believed)
{
    if (believed) {
        memcpy(self->present, input->reading.position, sizeof self->present);
        self->present_known = true;
        self->present_ns = input->reading.time_ns;
        self->lost = 0;
        self->lost_ns = -1;
        schedule_note_reading(&self->schedule, input->tick, input->reading.time_ns, self->present);
        self->alerts = 0;
        for (int i = self->config.joints - 1; i >= 0; i--) {
            bool alert = input->reading.alert[i] != 0;
            self->alerts |= (uint32_t)alert << i;
            if (alert && !(self->limp >> i & 1)) {
                self->limp |= 1u << i;
                fault(self, REASON_ALERT, i);
            }
        }
    } else {
        if (self->lost++ == 0)
            self->lost_ns = input->now_ns;
        bool stands = self->latched && self->state != PILOT_PARKING;
        if (armed(self) && !stands && input->now_ns - self->lost_ns >= self->config.reads_latch_ns)
            latch_hold(self, REASON_READS_LOST, input->trouble_joint);
        if (self->reason == REASON_READS_LOST)
            self->joint = input->trouble_joint; /* what the newest question showed */
    }
    if (input->read_result == ARM_UNPLUGGED || input->unplugged)
        fault(self, REASON_UNPLUGGED, -1);
    if (input->torque_failed)
        fault(self, input->setting_refused ? REASON_SETTING : REASON_TORQUE, input->trouble_joint);
}

/* What is wrong with servos that answer all the same. */
static void take_finding(pilot *self, const health_finding *finding)
{
    if (!self->torque)
        return;
    switch (finding->kind) {
    case FINDING_NO_TORQUE:
    case FINDING_ALERT:
        if (self->limp >> finding->joint & 1)
            break; /* the reading behind the question has shown its alert already */
        self->limp |= 1u << finding->joint;
        fault(self, finding->kind == FINDING_ALERT ? REASON_ALERT : REASON_TORQUE, finding->joint);
        break;
    case FINDING_DEAF:
        fault(self, REASON_DEAF, finding->joint);
        break;
    case FINDING_VOLTAGE:
        if (armed(self) && !self->latched)
            latch_hold(self, REASON_VOLTAGE, finding->joint);
        break;
    case FINDING_HOT:
        if (self->cooled || !armed(self) || self->reason == REASON_PARKED || self->state == PILOT_PARKING)
            break;
        self->cooled = true; /* once: a hold that is asked for afterwards is one */
        if (pilot_park(self, REASON_TEMPERATURE, finding->joint) != ANSWER_DONE)
            latch_hold(self, REASON_TEMPERATURE, finding->joint);
        break;
    default:
        break;
    }
}

/* The processes around us: who started the run, who watches over us, who writes chunks, the files between us. */
static void take_company(pilot *self, const pilot_input *input)
{
    bool moves = (armed(self) && !self->latched) || (self->state == PILOT_PARKING && !self->stopping);
    if (input->unattended && !self->unattended && moves)
        latch_hold(self, REASON_SUPERVISOR, -1);
    self->unattended = input->unattended;
    if (input->unguarded && !self->unguarded && moves)
        latch_hold(self, REASON_GUARDIAN, -1);
    self->unguarded = input->unguarded;
    if (armed(self) && !self->latched) {
        self->writer = self->writer != 0 ? self->writer : input->writer;
        if (input->writer != 0 && input->writer != self->writer)
            latch_hold(self, REASON_WRITER, -1);
    }
    if (input->damaged)
        fault(self, REASON_FILES, -1);
}

void pilot_begin(pilot *self, const pilot_input *input, pilot_output *output)
{
    memset(output, 0, sizeof *output);
    int64_t patience =
        input->patience_ns > self->config.patience_min_ns ? input->patience_ns : self->config.patience_min_ns;
    self->patience_ns = patience < self->config.patience_max_ns ? patience : self->config.patience_max_ns;
    bool side_left = self->config.buses > 1; /* when one is gone, the other takes the goals all the same */
    if (input->unsent && !(input->unplugged && side_left))
        guard_unsent(&self->guard);
    bool answered = input->read_result == ARM_OK || input->read_result == ARM_ALERT;
    bool believed = answered && believable(self, &input->reading);
    if (input->watchdog && (believed || !answered))
        take_watchdog(self, input, output); /* before the reading ends the loss */
    take_reading(self, input, believed);
    const schedule_plan *plan = &self->schedule.plans[self->schedule.current];
    if (plan->present && plan->data.observation_sequence <= input->dropped_through)
        schedule_drop(&self->schedule);
    take_finding(self, &input->finding);
    take_company(self, input);
    output->answer = pilot_obey(self, input, output);
    pilot_recovered(self, input, output);
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

/* Counts in a joint's units. */
static float units_of(const pilot *self, int joint, double counts)
{
    const guard_limits *limits = &self->config.limits[joint];
    return (float)((counts - limits->offset) / limits->scale);
}

/* The parking pose of a joint, as far as its limits allow it. */
static double pose_of(const pilot *self, int joint)
{
    const guard_limits *limits = &self->config.limits[joint];
    return fmin(fmax(self->config.park[joint], limits->position_min), limits->position_max);
}

static bool parked_at(const pilot *self, int joint)
{
    double pose = pose_of(self, joint);
    return self->parking[joint] == pose && fabs(pose - guard_place(&self->guard, joint)) <= 1.0;
}

/* Whose turn it is to park: the least one with a joint that is not there. */
static int turn_of(const pilot *self)
{
    int turn = UINT8_MAX;
    for (int i = 0; i < self->config.joints; i++)
        if (!(self->limp >> i & 1) && !parked_at(self, i) && self->config.park_turn[i] < turn)
            turn = self->config.park_turn[i];
    return turn;
}

/* The next wish of the slow move, in joint units; true when the pose was reached. */
static bool creep(pilot *self, float *action)
{
    double step = self->config.park_speed * (double)self->config.period_ns * 1e-9;
    const int turn = turn_of(self);
    bool there = true;
    for (int i = 0; i < self->config.joints; i++) {
        if (self->limp >> i & 1) {
            action[i] = units_of(self, i, guard_place(&self->guard, i));
            continue;
        }
        double gap = self->config.park_turn[i] <= turn ? pose_of(self, i) - self->parking[i] : 0;
        if (fabs(self->parking[i] - guard_place(&self->guard, i)) < PARK_LEAD) /* the wish waits for the goal */
            self->parking[i] += fabs(gap) <= step ? gap : copysign(step, gap);
        action[i] = units_of(self, i, self->parking[i]);
        there = there && parked_at(self, i);
    }
    return there && guard_at_rest(&self->guard);
}

/* The goals of the tick before, as the servos hold them. */
static void goals_of(const pilot *self, int32_t *goals)
{
    for (int i = 0; i < self->config.joints; i++)
        goals[i] = guard_goal(&self->guard, i);
}

/* An obstacle ends every motion; in a hold or a fault the goals are led back instead. */
static void feel(pilot *self, const pilot_input *input)
{
    int32_t goals[ARM_JOINTS_MAX];
    if (self->lost > 0 || !holds(self))
        return;
    goals_of(self, goals);
    int stalled = press_stalled(&self->press, goals, self->present, self->limp, input->now_ns);
    bool moves = self->state == PILOT_PARKING || (armed(self) && !self->latched);
    if (stalled < 0 || !moves)
        return;
    self->park_failed = self->state == PILOT_PARKING;
    latch_hold(self, REASON_STALL, stalled);
}

/* The wish that leads goals at rest back, in joint units; false: there is none. */
static bool yield(pilot *self, const pilot_input *input, float *action)
{
    int32_t goals[ARM_JOINTS_MAX], wish[ARM_JOINTS_MAX];
    bool stands = self->state == PILOT_FAULT || (self->state == PILOT_HOLD && self->latched);
    if (!stands || !holds(self) || self->lost > 0)
        return false;
    if (self->press.returned == 0 && !guard_at_rest(&self->guard))
        return false;
    goals_of(self, goals);
    if (!press_lead_back(&self->press, goals, self->present, self->limp, input->now_ns, wish))
        return false;
    for (int i = 0; i < self->config.joints; i++)
        action[i] = units_of(self, i, wish[i]);
    return true;
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
    pilot_reason reason = malformed ? REASON_MALFORMED : self->lost >= LOST_MANY ? REASON_READS_LOST : REASON_NO_ACTION;
    int32_t joint = reason == REASON_READS_LOST ? input->trouble_joint : -1;
    bool waits = reason == REASON_NO_ACTION && (input->plan_then_move || !self->moved);
    if (input->now_ns - self->idle_ns >= self->patience_ns)
        latch_hold(self, reason, joint);
    else
        enter(self, waits ? PILOT_PLANNING : PILOT_HOLD, waits ? REASON_NONE : reason, joint);
}

static void stop(pilot *self, const pilot_input *input, pilot_output *output)
{
    if (!self->stopping || (self->guard.started && !guard_at_rest(&self->guard)) || self->state == PILOT_PARKING)
        return;
    if (self->reason == REASON_PARKED)
        pilot_let_go(self, output); /* a parked arm rests by itself */
    else if (holds(self) && self->config.has_park && self->lost > 0
             && input->now_ns - self->lost_ns < self->config.reads_latch_ns)
        return; /* the pose cannot be gone to blindly: readings may come back */
    else if (!self->park_failed && pilot_park(self, REASON_OPERATOR, -1) == ANSWER_DONE)
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
    feel(self, input);
    goals_of(self, output->from);

    bool parked = false;
    if (input->malformed) /* the writer is broken: what it wrote before counts no more */
        schedule_drop(&self->schedule);
    output->action = schedule_due(&self->schedule, input->tick);
    if (self->state == PILOT_PARKING) {
        parked = creep(self, output->action.action);
        output->action.due = true;
    } else if (!output->action.due && output->torque == TORQUE_KEEP) {
        output->action.due = yield(self, input, output->action.action);
    }
    if (self->state == PILOT_PARKING || self->state == PILOT_MOVING)
        press_release(&self->press);
    if (!self->guard.started) {
        output->guard = (guard_result){.verdict = GUARD_PASSED, .joint = -1};
        memcpy(output->guard.goals, output->from, sizeof output->from);
    } else if (output->action.due && output->torque == TORQUE_KEEP) {
        output->guard = guard_step(&self->guard, output->action.action, self->config.joints, &view);
    } else {
        /* Also in the tick of arming: the first goal is the present position. */
        output->guard = guard_brake(&self->guard);
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
    schedule_note_goal(&self->schedule, input->tick,
                       memcmp(output->from, output->guard.goals, sizeof output->from) != 0);
    stop(self, input, output);

    output->state = self->state;
    output->reason = self->reason;
    output->joint = self->joint;
    output->latched = self->latched;
    output->write = holds(self) || (self->config.buses > 1 && self->torque && self->guard.started);
}
