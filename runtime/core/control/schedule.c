/* SPDX-License-Identifier: Apache-2.0 */
#include "schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void schedule_init(schedule *self, const schedule_config *config, int64_t period_ns, int64_t action_ns)
{
    memset(self, 0, sizeof *self);
    self->config = *config;
    self->period_ns = period_ns;
    self->action_ns = action_ns;
    for (int i = 0; i < SCHEDULE_HISTORY; i++)
        self->readings[i].tick = -1;
    schedule_arm(self, 0);
}

void schedule_round_corners(schedule *self, int joint, double corner)
{
    self->corner[joint] = corner;
}

void schedule_arm(schedule *self, int64_t tick)
{
    schedule_drop(self);
    self->last_sequence = -1;
    self->armed_tick = tick;
    self->goal_moved_tick = tick - 1;
}

void schedule_drop(schedule *self)
{
    self->plans[0].present = false;
    self->plans[1].present = false;
}

void schedule_note_reading(schedule *self, int64_t tick, int64_t time_ns, const int32_t *position)
{
    schedule_reading *reading = &self->readings[tick % SCHEDULE_HISTORY];
    reading->tick = tick;
    reading->time_ns = time_ns;
    memcpy(reading->position, position, (size_t)self->config.joints * sizeof *position);
}

void schedule_note_goal(schedule *self, int64_t tick, bool moved)
{
    if (moved)
        self->goal_moved_tick = tick;
}

/* Nothing moved since the observation. The goal written at the observation's tick follows its reading. */
static bool rested(const schedule *self, const schedule_reading *observed, const int32_t *present)
{
    if (present == NULL || self->goal_moved_tick >= observed->tick)
        return false;
    for (int i = 0; i < self->config.joints; i++) {
        int64_t moved = (int64_t)present[i] - observed->position[i];
        if (moved > self->config.rest_counts[i] || moved < -self->config.rest_counts[i])
            return false;
    }
    return true;
}

/* Whether a chunk of n actions, `since_ns` after its first, has none to come. */
static bool ended(const schedule *self, int64_t n, int64_t since_ns)
{
    return since_ns - (n - 1) * self->action_ns >= self->period_ns;
}

static chunk_verdict judge(const schedule *self, const chunk *data, const schedule_view *view)
{
    int64_t observed = data->observation_tick;
    if (data->session != self->config.session)
        return CHUNK_SESSION;
    if (memcmp(data->digest, self->config.digest, DIGEST_BYTES) != 0)
        return CHUNK_DIGEST;
    if (data->observation_sequence <= self->last_sequence || observed < self->armed_tick)
        return CHUNK_ORDER;
    if (observed > view->tick)
        return CHUNK_FUTURE;
    /* Control's own reading of that tick dates the observation, so a wrong time in the chunk makes it no younger. */
    const schedule_reading *reading = &self->readings[observed % SCHEDULE_HISTORY];
    if (reading->tick != observed || view->now_ns - reading->time_ns > view->age_limit_ns
        || data->observation_ns < view->now_ns - view->age_limit_ns) /* whatever the chunk says: no overflow */
        return CHUNK_AGE;
    if (data->kind == CHUNK_REST)
        return rested(self, reading, view->present) ? CHUNK_TAKEN : CHUNK_MOVED;
    return ended(self, data->n, (view->tick - observed) * self->period_ns) ? CHUNK_LATE : CHUNK_TAKEN;
}

chunk_verdict schedule_offer(schedule *self, const chunk *data, const schedule_view *view)
{
    chunk_verdict verdict = judge(self, data, view);
    if (verdict != CHUNK_TAKEN)
        return verdict;
    self->current = 1 - self->current;
    schedule_plan *plan = &self->plans[self->current];
    plan->data = *data;
    plan->start = data->kind == CHUNK_REST ? view->tick : data->observation_tick;
    plan->present = true;
    self->taken_tick = view->tick;
    self->last_sequence = data->observation_sequence;
    return CHUNK_TAKEN;
}

/* Action `index` of one joint. Beyond both ends the chunk goes on as its own reflection in the end's point, so that the
 * mean about an end is that end. */
static float row(const schedule_plan *plan, int64_t index, int joint)
{
    int64_t last = plan->data.n - 1, end = index < 0 ? 0 : last;
    const float *actions = &plan->data.actions[joint];
    if (index >= 0 && index <= last)
        return actions[index * plan->data.joints];
    int64_t inside = 2 * end - index;
    inside = inside < 0 ? 0 : inside > last ? last : inside;
    return 2 * actions[end * plan->data.joints] - actions[inside * plan->data.joints];
}

/* `share` of the way from action `before` to the next. */
static float line(const schedule_plan *plan, int64_t before, float share, int joint)
{
    float from = row(plan, before, joint);
    return from + share * (row(plan, before + 1, joint) - from);
}

/* Whether the line turns a corner here that the joint cannot turn in a tick. */
static bool turns(const schedule *self, const schedule_plan *plan, int64_t before, int joint)
{
    double actions_a_tick = (double)self->period_ns / (double)self->action_ns;
    for (int64_t i = before + 1 - ROUNDED; self->corner[joint] > 0 && i <= before + ROUNDED; i++) {
        double corner =
            (double)row(plan, i - 1, joint) - 2 * (double)row(plan, i, joint) + (double)row(plan, i + 1, joint);
        if (fabs(corner) * actions_a_tick > self->corner[joint])
            return true;
    }
    return false;
}

/* The line's mean over ROUNDED actions to both sides, what is near counting most: it is neither late nor early, and
 * what changes sign from one action to the next is not in it. */
static float rounded(const schedule_plan *plan, int64_t before, float share, int joint)
{
    enum { PARTS = 3, ALL = PARTS * ROUNDED };
    float sum = 0;
    for (int part = 1 - ALL; part < ALL; part++) {
        float at = share + (float)part / PARTS, whole = floorf(at);
        sum += (float)(ALL - abs(part)) * line(plan, before + (int64_t)whole, at - whole, joint);
    }
    return sum / (ALL * ALL);
}

/* What `plan` wants at `tick`; false: nothing. index: of the action at or before it. */
static bool wish(const schedule *self, const schedule_plan *plan, int64_t tick, float *action, int32_t *index)
{
    int64_t since_ns = (tick - plan->start) * self->period_ns;
    if (!plan->present || since_ns < 0 || ended(self, plan->data.n, since_ns))
        return false;
    int64_t last = plan->data.n - 1, before = since_ns / self->action_ns;
    before = before < last ? before : last;
    float share = before == last ? 0 : (float)((double)(since_ns - before * self->action_ns) / (double)self->action_ns);
    for (int i = 0; i < self->config.joints; i++) {
        float instead = turns(self, plan, before, i) ? rounded(plan, before, share, i) : NAN;
        action[i] = isfinite(instead) ? instead : line(plan, before, share, i);
    }
    *index = (int32_t)before;
    return true;
}

schedule_action schedule_due(const schedule *self, int64_t tick)
{
    schedule_action result = {.sequence = -1, .index = -1};
    const schedule_plan *plan = &self->plans[self->current];
    result.due = wish(self, plan, tick, result.action, &result.index);
    if (!result.due)
        return result;
    result.sequence = plan->data.observation_sequence;
    int64_t since_ns = (tick - self->taken_tick) * self->period_ns;
    int64_t over_ns = self->config.blend_actions * self->action_ns;
    float old[ARM_JOINTS_MAX];
    int32_t unused;
    if (since_ns < over_ns && wish(self, &self->plans[1 - self->current], tick, old, &unused)) {
        float share = (float)((double)(since_ns + self->period_ns) / (double)(over_ns + self->period_ns));
        for (int i = 0; i < self->config.joints; i++)
            result.action[i] = old[i] + share * (result.action[i] - old[i]);
    }
    return result;
}

int64_t schedule_left(const schedule *self, int64_t tick)
{
    const schedule_plan *plan = &self->plans[self->current];
    int64_t left = plan->data.n - 1 - (tick - plan->start) * self->period_ns / self->action_ns;
    return plan->present && left > 0 ? left : 0;
}
