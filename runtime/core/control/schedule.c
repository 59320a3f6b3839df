#include "schedule.h"

#include <string.h>

void schedule_init(schedule *self, const schedule_config *config)
{
    memset(self, 0, sizeof *self);
    self->config = *config;
    for (int i = 0; i < SCHEDULE_HISTORY; i++)
        self->readings[i].tick = -1;
    schedule_arm(self, 0);
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

void schedule_note_reading(schedule *self, int64_t tick, int64_t time_ns, const int32_t position[ARM_JOINTS])
{
    schedule_reading *reading = &self->readings[tick % SCHEDULE_HISTORY];
    reading->tick = tick;
    reading->time_ns = time_ns;
    memcpy(reading->position, position, sizeof reading->position);
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
    for (int i = 0; i < ARM_JOINTS; i++) {
        int64_t moved = (int64_t)present[i] - observed->position[i];
        if (moved > self->config.rest_counts[i] || moved < -self->config.rest_counts[i])
            return false;
    }
    return true;
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
    /* The control's own reading of that tick dates the observation, so a wrong time in the chunk makes it no younger. */
    const schedule_reading *reading = &self->readings[observed % SCHEDULE_HISTORY];
    if (reading->tick != observed || view->now_ns - reading->time_ns > view->age_limit_ns
        || data->observation_ns < view->now_ns - view->age_limit_ns) /* whatever the chunk says: no overflow */
        return CHUNK_AGE;
    if (data->kind == CHUNK_REST)
        return rested(self, reading, view->present) ? CHUNK_TAKEN : CHUNK_MOVED;
    return view->tick - observed < data->n ? CHUNK_TAKEN : CHUNK_LATE;
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

/* The row of `plan` that is due at `tick`, or NULL. */
static const float *row(const schedule_plan *plan, int64_t tick)
{
    if (!plan->present || tick < plan->start || tick - plan->start >= plan->data.n)
        return NULL;
    return &plan->data.actions[(tick - plan->start) * ARM_JOINTS];
}

schedule_action schedule_due(const schedule *self, int64_t tick)
{
    schedule_action result = {.sequence = -1, .index = -1};
    const schedule_plan *plan = &self->plans[self->current];
    const float *action = row(plan, tick);
    if (action == NULL)
        return result;
    result.due = true;
    result.sequence = plan->data.observation_sequence;
    result.index = (int32_t)(tick - plan->start);
    memcpy(result.action, action, sizeof result.action);
    int64_t since = tick - self->taken_tick;
    const float *old = row(&self->plans[1 - self->current], tick);
    if (since < self->config.blend_ticks && old != NULL) {
        float share = (float)(since + 1) / (float)(self->config.blend_ticks + 1);
        for (int i = 0; i < ARM_JOINTS; i++)
            result.action[i] = old[i] + share * (action[i] - old[i]);
    }
    return result;
}
