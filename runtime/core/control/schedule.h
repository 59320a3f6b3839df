/* SPDX-License-Identifier: Apache-2.0 */
/* Which action of which chunk is due at this tick.
 *
 * Actions stand `action_ns` apart, which is the data's period; ticks `period_ns`.
 * moving: action i is due i * action_ns after the tick of the observation's joint
 * reading; a late chunk loses its past actions. rest: action 0 is due at the
 * tick of acceptance, and only when nothing moved since the observation: every
 * goal constant from before that tick on, and |present - observed| below a limit.
 * A tick between two actions takes what lies between them on a straight line. Near
 * a corner of that line which the joint cannot turn in one tick it takes the
 * line's mean over two actions to both sides instead: sent after the line itself
 * a goal would overshoot corner after corner, and an arm at rest tremble. The
 * last action is due at the first tick that does not come before it, and then the
 * chunk has ended. All of it counts ticks at their nominal times, so that a late
 * tick changes nothing.
 *
 * Where two chunks overlap the new one takes over at once, or over some actions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arm.h"
#include "chunk.h"

enum {
    SCHEDULE_HISTORY = 4096, /* ticks of which the reading is known: 40 s at 100 Hz */
    ROUNDED = 2,             /* actions to both sides of a corner */
};

typedef struct {
    uint64_t session;
    uint8_t digest[DIGEST_BYTES];
    int32_t joints;
    int32_t blend_actions;           /* actions over which a new chunk takes over; 0: at once */
    int32_t rest_counts[ARM_JOINTS_MAX]; /* |present - observed| of a rest chunk */
} schedule_config;

typedef struct {
    int64_t tick;
    int64_t time_ns;
    int32_t position[ARM_JOINTS_MAX];
} schedule_reading;

typedef struct {
    chunk data;
    int64_t start; /* tick at which action 0 is due */
    bool present;
} schedule_plan;

typedef struct {
    schedule_config config;
    int64_t period_ns, action_ns; /* from tick to tick, from action to action */
    double corner[ARM_JOINTS_MAX];    /* joint units a tick by which the velocity may change in a tick; 0: any */
    schedule_plan plans[2];
    int current;             /* the plan in force; the other is the one it took over from */
    int64_t taken_tick;      /* when it took over */
    int64_t last_sequence;   /* newest observation a chunk was taken of */
    int64_t armed_tick;      /* observations before it count for nothing */
    int64_t goal_moved_tick; /* last tick whose goal differed from the one before */
    schedule_reading readings[SCHEDULE_HISTORY]; /* at tick % SCHEDULE_HISTORY */
} schedule;

typedef struct {
    int64_t tick;
    int64_t now_ns;
    int64_t age_limit_ns;
    const int32_t *present; /* counts, NULL: not known */
} schedule_view;

typedef struct {
    bool due;
    float action[ARM_JOINTS_MAX]; /* joint units */
    int64_t sequence;         /* of the chunk's observation */
    int32_t index;            /* of the action in the chunk, of the earlier one between two */
} schedule_action;

void schedule_init(schedule *self, const schedule_config *config, int64_t period_ns, int64_t action_ns);
/* `corner` as in the struct. */
void schedule_round_corners(schedule *self, int joint, double corner);
/* Forgets plans and sequence: what was observed before `tick` is refused from now on. */
void schedule_arm(schedule *self, int64_t tick);
/* Forgets the plans: nothing is due until a new chunk is taken. */
void schedule_drop(schedule *self);
void schedule_note_reading(schedule *self, int64_t tick, int64_t time_ns, const int32_t *position);
void schedule_note_goal(schedule *self, int64_t tick, bool moved);

/* Takes the chunk, or says why not. The chunk's shape was checked by ring_check. */
chunk_verdict schedule_offer(schedule *self, const chunk *data, const schedule_view *view);
schedule_action schedule_due(const schedule *self, int64_t tick);
/* Actions of the plan in force that come after `tick`. */
int64_t schedule_left(const schedule *self, int64_t tick);
