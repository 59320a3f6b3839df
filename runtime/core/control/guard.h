/* SPDX-License-Identifier: Apache-2.0 */
/* The safety filter: the last function before the bus.
 *
 * Units. A goal is a whole number of steps, sixteen to a servo count, and so are
 * its differences over the nominal tick T: velocity v = g - g', acceleration
 * a = v - v', jerk j = a - a'. Limits given per second are multiplied by T, T^2,
 * T^3 and rounded DOWN to whole steps, and all arithmetic is in integers. The bus
 * is sent the nearest whole count, so what is seen there is at most half a count
 * from goals that keep every limit exactly, and velocity and step, whole counts
 * or not, are passed by less than a count. A limit below one step is refused at
 * start. (Whole counts are too coarse for that: at 90 Hz the usual jerk limit is
 * 1.4 counts a tick^3. Version 1 of the guard had them; records name the version.)
 *
 * Law. The state (g, v, a) of every joint is always *stoppable*: the brake
 * (below) leads it to rest without leaving the soft limits, the velocity, the
 * step, the acceleration or the jerk limit. It holds at the start (v = a = 0
 * inside the soft limits). Each step takes, of the accelerations within reach,
 * the one nearest to the wish that leads to a stoppable state. The brake's own
 * next step is always such a choice, because the brake's path from there is the
 * rest of a path already found good; so a choice exists at every tick, whatever
 * was asked before. An arm that lies on its stops starts outside the soft limits: the limit on that side is then where
 * the goal is, and follows it inwards, so that it never moves further out.
 *
 * Brake. Let `released` be the velocity that remains when the acceleration is
 * led to zero as fast as the jerk limit allows. The brake takes the strongest
 * deceleration that does not turn the sign of `released`. It ends exactly in
 * v = a = 0: `released` never grows, and with |a| <= jerk it falls by at least
 * one count each tick.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arm.h"

enum {
    GUARD_START_TOLERANCE = 2, /* counts the first goal may differ from the present position */
    GUARD_SAG = 64, /* counts a servo may hang beyond a soft limit that is its goal (5.6 degrees) */
    GUARD_OUTSIDE_MAX = 512, /* counts a start may lie beyond a soft limit (45 degrees): further is a lost turn */
    GUARD_COUNTS_MAX = 1 << 20, /* 256 turns: beyond it a value is no joint position */
    GUARD_PER_TICK_MAX = 1 << 14, /* four turns a tick: a larger rate is cut to it */
    GUARD_JOIN_COUNTS = 8, /* how far beside a moving wish a brake may end for the goal to join it (0.7 degrees) */
    GUARD_REST_TICKS_MAX = 512, /* a brake longer than this is refused at start */
};

/* The same law in other steps. */
typedef enum {
    GUARD_WHOLE_COUNTS = 1, /* of records up to version 3 */
    GUARD_SIXTEENTHS = 2,
    GUARD_VERSION = GUARD_SIXTEENTHS, /* of this build */
} guard_version;

/* The same numbers as vla_edge.contract.Verdict. */
typedef enum {
    GUARD_PASSED,
    GUARD_CLAMPED_POSITION,
    GUARD_CLAMPED_VELOCITY,
    GUARD_CLAMPED_ACCELERATION,
    GUARD_CLAMPED_JERK,
    GUARD_CLAMPED_STEP,
    GUARD_CLAMPED_TRACKING,
    GUARD_REFUSED_NOT_FINITE,
    GUARD_REFUSED_JOINTS,
    GUARD_REFUSED_NO_READING,
    GUARD_VERDICTS,
} guard_verdict;

/* One joint's limits as a person states them. */
typedef struct {
    int32_t position_min, position_max; /* counts, soft limits */
    double velocity;                    /* counts/s */
    double acceleration;                /* counts/s^2 */
    double jerk;                        /* counts/s^3 */
    int32_t step;                       /* counts a tick */
    int32_t tracking;                   /* counts, |goal - present| */
    double scale, offset;               /* counts = scale * joint unit + offset */
} guard_limits;

/* The same limits in steps and ticks. */
typedef struct {
    int32_t position_min, position_max;
    int32_t velocity; /* the smaller of the velocity and the step limit */
    int32_t acceleration;
    int32_t jerk;
    int32_t tracking;
    bool step_is_smaller; /* `velocity` came from the step limit */
    double scale, offset;
} guard_joint_limits;

/* In steps. */
typedef struct {
    int32_t goal, velocity, acceleration;
    int32_t low, high; /* the soft limits; where the start lay outside, as far out as the goal still is */
    int32_t wish;      /* the last wish, to know how fast it moves */
    bool wish_known;
} guard_joint;

typedef struct {
    guard_joint_limits limits[ARM_JOINTS_MAX];
    guard_joint joints[ARM_JOINTS_MAX];
    guard_joint before[ARM_JOINTS_MAX]; /* `joints` before the last tick */
    int32_t count;            /* of joints */
    int32_t unit;             /* steps in a count */
    int64_t reading_limit_ns; /* a reading older than this is no reading */
    int32_t rest_ticks;       /* ticks the brake needs at most, from any state */
    bool started;
} guard;

typedef enum {
    GUARD_CONFIG_OK,
    GUARD_CONFIG_RANGE, /* no joints or too many, soft limits out of order or beyond GUARD_COUNTS_MAX, a map without
                           slope, no such version */
    GUARD_CONFIG_RATE, /* velocity, acceleration, jerk or step below one step at this rate */
    GUARD_CONFIG_REST, /* the brake would need more than GUARD_REST_TICKS_MAX ticks */
} guard_config_error;

/* What the guard looks at besides the action. */
typedef struct {
    const int32_t *present; /* counts [joints], NULL: never read */
    int64_t present_ns;     /* when it was read */
    int64_t now_ns;
} guard_view;

typedef struct {
    guard_verdict verdict; /* the first limit in the order of the filter that was met */
    int32_t joint;         /* its joint, -1 when the whole action is meant */
    uint8_t joints[ARM_JOINTS_MAX]; /* verdict of each joint */
    int32_t goals[ARM_JOINTS_MAX];  /* counts, as the servos get them */
} guard_result;

/* Sets limits from `limits` [joints] for ticks of period_ns. On error names the joint. */
guard_config_error guard_configure(guard *self, const guard_limits *limits, int joints, int64_t period_ns,
                                   guard_version version, int *joint);

/* Joint units a tick by which the velocity of a joint may change in a tick, and back in the next. */
double guard_corner(const guard *self, int joint);

/* Starts at rest at the present position; where that lies at most `within` counts outside the soft limits, at the
 * limit. False, with the joint, when one lies further outside than GUARD_OUTSIDE_MAX. */
bool guard_start(guard *self, const int32_t *present, int32_t within, int *joint);
/* One joint alone, at rest where it is. The others go on. */
void guard_start_joint(guard *self, int joint, int32_t present);

/* One tick towards `action` (joint units, `joints` values). A refused action
 * contributes nothing to the goals: they follow the brake. */
guard_result guard_step(guard *self, const float *action, int joints, const guard_view *view);

/* One tick of the brake: a hold. */
guard_result guard_brake(guard *self);

/* The goals of the last step never reached the bus: the next step starts where they started, so that the
 * differences seen on the bus stay those that were checked. */
void guard_unsent(guard *self);

/* Where the goal of a joint is, in counts: exactly, and as the servo gets it. */
double guard_place(const guard *self, int joint);
int32_t guard_goal(const guard *self, int joint);

/* True when every goal is constant. */
bool guard_at_rest(const guard *self);
