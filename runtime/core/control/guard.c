/* SPDX-License-Identifier: Apache-2.0 */
/* The safety filter; the law it keeps stands in guard.h. */
#include "guard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

static int32_t magnitude(int32_t value)
{
    return value < 0 ? -value : value;
}

/* Velocity left after leading `acceleration` to zero in steps of `jerk`: v + sum of (|a| - i * jerk), i = 1, 2, ... */
static int64_t released(int64_t velocity, int32_t acceleration, int32_t jerk)
{
    if (acceleration == 0)
        return velocity;
    int64_t size = magnitude(acceleration);
    int64_t steps = (size - 1) / jerk;
    int64_t sum = steps * size - jerk * (steps * (steps + 1) / 2);
    return acceleration > 0 ? velocity + sum : velocity - sum;
}

/* The brake's next acceleration. */
static int32_t brake(const guard_joint_limits *limits, int32_t velocity, int32_t acceleration)
{
    int64_t rest = released(velocity, acceleration, limits->jerk);
    if (rest < 0)
        return -brake(limits, -velocity, -acceleration);
    int32_t low = clamp(acceleration - limits->jerk, -limits->acceleration, limits->acceleration);
    int32_t high = acceleration - clamp(acceleration, -limits->jerk, limits->jerk); /* towards zero: keeps `rest` */
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (released((int64_t)velocity + middle, middle, limits->jerk) >= 0)
            high = middle;
        else
            low = middle + 1;
    }
    return high;
}

/* Does the brake from this state stay inside every limit? GUARD_PASSED, or the limit it would pass. */
static guard_verdict stoppable(const guard_joint_limits *limits, guard_joint state)
{
    for (;;) {
        if (magnitude(state.velocity) > limits->velocity)
            return limits->step_is_smaller ? GUARD_CLAMPED_STEP : GUARD_CLAMPED_VELOCITY;
        if (state.goal < state.low || state.goal > state.high)
            return GUARD_CLAMPED_POSITION;
        if (state.velocity == 0 && state.acceleration == 0)
            return GUARD_PASSED;
        state.acceleration = brake(limits, state.velocity, state.acceleration);
        state.velocity += state.acceleration;
        state.goal += state.velocity;
    }
}

static guard_joint moved(guard_joint state, int32_t acceleration)
{
    state.acceleration = acceleration;
    state.velocity += acceleration;
    state.goal += state.velocity;
    return state;
}

/* The soft limits where the goal is inside them; where it is not yet, no further out than it has come. */
static void keep_inside(const guard_joint_limits *limits, guard_joint *joint)
{
    joint->low = joint->goal < limits->position_min ? joint->goal : limits->position_min;
    joint->high = joint->goal > limits->position_max ? joint->goal : limits->position_max;
}

/* Where a brake relative to something moving at `velocity` ends, from `state`. */
static int64_t landing(const guard_joint_limits *limits, guard_joint state, int32_t velocity)
{
    int64_t place = state.goal;
    int32_t relative = state.velocity - velocity;
    int32_t acceleration = state.acceleration;
    while (relative != 0 || acceleration != 0) {
        acceleration = brake(limits, relative, acceleration);
        relative += acceleration;
        place += relative;
    }
    return place;
}

/* Counts a tick the wish moves at now; a jump is no motion. */
static int32_t motion(const guard_joint_limits *limits, const guard_joint *joint, int32_t wish)
{
    int32_t moving = joint->wish_known ? wish - joint->wish : 0;
    return magnitude(moving) <= limits->velocity ? moving : 0;
}

/* May the wish be met in this tick? Yes when the last one was: then it is followed. Else only when a brake from
 * there would end on it, or that much beside it while it moves, so that no goal shoots past a still wish. */
static bool arrives(const guard_joint_limits *limits, const guard_joint *joint, int32_t wish, int32_t acceleration,
                    int32_t beside)
{
    if (joint->wish_known && joint->wish == joint->goal)
        return true;
    int32_t moving = motion(limits, joint, wish);
    int64_t off = landing(limits, moved(*joint, acceleration), moving) - wish;
    return llabs(off) <= (moving == 0 ? 0 : beside);
}

/* The acceleration after which a brake ends on the wish or last before it, if the wish goes on as it moves now:
 * how a wish that cannot be met at once is approached. */
static int32_t approach(const guard_joint_limits *limits, const guard_joint *joint, int32_t wish, int32_t low,
                        int32_t high)
{
    int32_t moving = motion(limits, joint, wish);
    int32_t first = low, last = high;
    while (first < last) { /* the smallest that lands on the wish or beyond, or `high` */
        int32_t middle = first + (last - first) / 2;
        if (landing(limits, moved(*joint, middle), moving) >= wish)
            last = middle;
        else
            first = middle + 1;
    }
    bool beyond = landing(limits, moved(*joint, first), moving) > wish;
    return beyond && first > low && joint->goal <= wish ? first - 1 : first;
}

/* The step of one joint towards `wish`: the acceleration nearest to it that leads to a stoppable state. */
static guard_verdict step_joint(const guard_joint_limits *limits, guard_joint *joint, int32_t wish, int32_t present,
                                int32_t unit)
{
    int32_t inside = clamp(wish, limits->position_min, limits->position_max);
    guard_verdict verdict = inside == wish ? GUARD_PASSED : GUARD_CLAMPED_POSITION;
    present = unit * clamp(present, -2 * GUARD_COUNTS_MAX, 2 * GUARD_COUNTS_MAX); /* no overflow below */
    int32_t near = clamp(inside, present - limits->tracking, present + limits->tracking);
    int32_t target = clamp(near, joint->low, joint->high);

    int32_t wanted = target - joint->goal - joint->velocity;
    int32_t low = clamp(joint->acceleration - limits->jerk, -limits->acceleration, limits->acceleration);
    int32_t high = clamp(joint->acceleration + limits->jerk, -limits->acceleration, limits->acceleration);
    int32_t chosen = wanted;
    guard_verdict met = GUARD_PASSED;
    if (magnitude(target - joint->goal) > limits->velocity)
        met = limits->step_is_smaller ? GUARD_CLAMPED_STEP : GUARD_CLAMPED_VELOCITY;
    else if (magnitude(wanted) > limits->acceleration)
        met = GUARD_CLAMPED_ACCELERATION;
    else if (wanted < low || wanted > high || !arrives(limits, joint, target, wanted, GUARD_JOIN_COUNTS * unit))
        met = GUARD_CLAMPED_JERK;
    if (met != GUARD_PASSED)
        chosen = approach(limits, joint, target, low, high);

    guard_verdict limit = stoppable(limits, moved(*joint, chosen));
    if (limit != GUARD_PASSED) {
        met = met == GUARD_PASSED ? limit : met;
        /* Stoppable, and so is all between it and .. */
        int32_t safe = brake(limits, joint->velocity, joint->acceleration);
        while (chosen - safe > 1 || chosen - safe < -1) { /* .. the last before `chosen` */
            int32_t middle = safe + (chosen - safe) / 2;
            if (stoppable(limits, moved(*joint, middle)) == GUARD_PASSED)
                safe = middle;
            else
                chosen = middle;
        }
        chosen = safe;
    }
    *joint = moved(*joint, chosen);
    keep_inside(limits, joint);
    joint->wish = target;
    joint->wish_known = true;
    if (verdict == GUARD_PASSED)
        verdict = met;
    if (verdict == GUARD_PASSED && near != inside)
        verdict = GUARD_CLAMPED_TRACKING;
    return verdict;
}

/* Whole steps below `rate` (counts) for one tick; `power` periods multiply it. */
static int32_t per_tick(double rate, double period_s, int power, int32_t unit)
{
    double steps = rate * unit;
    for (int i = 0; i < power; i++)
        steps *= period_s;
    if (!(steps >= 1.0))
        return 0;
    return (int32_t)floor(fmin(steps, GUARD_PER_TICK_MAX * unit));
}

/* Ticks the brake needs from the worst stoppable state, one in which the velocity limit is just kept while the
 * acceleration is led to zero; more than GUARD_REST_TICKS_MAX is not counted out. */
static int32_t rest_ticks(const guard_joint_limits *limits)
{
    int32_t worst = 0;
    for (int32_t a = 0; a <= limits->acceleration; a++) {
        int64_t v = limits->velocity - released(0, a, limits->jerk);
        if (v < -limits->velocity)
            break; /* so much acceleration is never reached */
        int32_t velocity = (int32_t)v, acceleration = a, ticks = 0;
        while ((velocity != 0 || acceleration != 0) && ticks <= GUARD_REST_TICKS_MAX) {
            acceleration = brake(limits, velocity, acceleration);
            velocity += acceleration;
            ticks++;
        }
        if (ticks > worst)
            worst = ticks;
    }
    return worst;
}

guard_config_error guard_configure(guard *self, const guard_limits *limits, int joints, int64_t period_ns,
                                   guard_version version, int *joint)
{
    double period_s = (double)period_ns * 1e-9;
    memset(self, 0, sizeof *self);
    int32_t unit = self->unit = version == GUARD_SIXTEENTHS ? 16 : 1;
    *joint = 0;
    if (joints < 1 || joints > ARM_JOINTS_MAX)
        return GUARD_CONFIG_RANGE;
    self->count = joints;
    self->reading_limit_ns = period_ns * 5 / 2; /* the third reading missed in a row is one too many */
    for (int i = 0; i < self->count; i++) {
        const guard_limits *from = &limits[i];
        guard_joint_limits *to = &self->limits[i];
        *joint = i;
        if ((version != GUARD_WHOLE_COUNTS && version != GUARD_SIXTEENTHS) ||
            from->position_min >= from->position_max || from->position_min < -GUARD_COUNTS_MAX ||
            from->position_max > GUARD_COUNTS_MAX || !isfinite(from->scale) || from->scale == 0.0 ||
            !isfinite(from->offset) || from->tracking < 1 || from->tracking > GUARD_COUNTS_MAX)
            return GUARD_CONFIG_RANGE;
        to->position_min = from->position_min * unit;
        to->position_max = from->position_max * unit;
        to->velocity = per_tick(from->velocity, period_s, 1, unit);
        to->acceleration = per_tick(from->acceleration, period_s, 2, unit);
        to->jerk = per_tick(from->jerk, period_s, 3, unit);
        to->tracking = from->tracking * unit;
        to->scale = from->scale;
        to->offset = from->offset;
        to->step_is_smaller = (int64_t)from->step * unit < to->velocity;
        to->velocity = to->step_is_smaller ? from->step * unit : to->velocity;
        if (to->velocity < 1 || to->acceleration < 1 || to->jerk < 1)
            return GUARD_CONFIG_RATE;
        /* More than this cannot be used, and it bounds the work of a tick. */
        to->acceleration = to->acceleration > 2 * to->velocity ? 2 * to->velocity : to->acceleration;
        to->jerk = to->jerk > 2 * to->acceleration ? 2 * to->acceleration : to->jerk;
        int32_t ticks = rest_ticks(to);
        if (ticks > GUARD_REST_TICKS_MAX)
            return GUARD_CONFIG_REST;
        if (ticks > self->rest_ticks)
            self->rest_ticks = ticks;
    }
    return GUARD_CONFIG_OK;
}

double guard_corner(const guard *self, int joint)
{
    const guard_joint_limits *limits = &self->limits[joint];
    int32_t steps = limits->acceleration < limits->jerk ? limits->acceleration : limits->jerk;
    return (double)steps / self->unit / fabs(limits->scale);
}

void guard_start_joint(guard *self, int joint, int32_t present)
{
    self->joints[joint] = (guard_joint){.goal = present * self->unit};
    keep_inside(&self->limits[joint], &self->joints[joint]);
    self->before[joint] = self->joints[joint];
}

bool guard_start(guard *self, const int32_t *present, int32_t within, int *joint)
{
    self->started = false;
    for (int i = 0; i < self->count; i++) {
        int32_t goal =
            clamp(present[i], self->limits[i].position_min / self->unit, self->limits[i].position_max / self->unit);
        long long outside = llabs((long long)goal - present[i]);
        *joint = i;
        if (outside > GUARD_OUTSIDE_MAX)
            return false;
        guard_start_joint(self, i, outside <= within ? goal : present[i]);
    }
    self->started = true;
    return true;
}

guard_result guard_brake(guard *self)
{
    guard_result result = {.verdict = GUARD_PASSED, .joint = -1};
    memcpy(self->before, self->joints, sizeof self->before);
    for (int i = 0; i < self->count; i++) {
        guard_joint *joint = &self->joints[i];
        *joint = moved(*joint, brake(&self->limits[i], joint->velocity, joint->acceleration));
        keep_inside(&self->limits[i], joint);
        joint->wish_known = false;
        result.goals[i] = guard_goal(self, i);
    }
    return result;
}

static guard_result refuse(guard *self, guard_verdict verdict, int joint)
{
    guard_result result = guard_brake(self);
    result.verdict = verdict;
    result.joint = joint;
    memset(result.joints, verdict, sizeof result.joints);
    return result;
}

guard_result guard_step(guard *self, const float *action, int joints, const guard_view *view)
{
    int32_t wish[ARM_JOINTS_MAX];
    for (int i = 0; i < joints && i < self->count; i++) {
        double counts = self->limits[i].scale * (double)action[i] + self->limits[i].offset;
        if (!(fabs(counts) <= GUARD_COUNTS_MAX)) /* NaN fails every comparison */
            return refuse(self, GUARD_REFUSED_NOT_FINITE, i);
        wish[i] = (int32_t)lround(counts * self->unit);
    }
    if (joints != self->count)
        return refuse(self, GUARD_REFUSED_JOINTS, joints < self->count ? joints : -1);
    if (!self->started || view->present == NULL || view->now_ns - view->present_ns > self->reading_limit_ns)
        return refuse(self, GUARD_REFUSED_NO_READING, -1);

    guard_result result = {.verdict = GUARD_PASSED, .joint = -1};
    memcpy(self->before, self->joints, sizeof self->before);
    for (int i = 0; i < self->count; i++) {
        guard_verdict verdict = step_joint(&self->limits[i], &self->joints[i], wish[i], view->present[i], self->unit);
        result.joints[i] = (uint8_t)verdict;
        result.goals[i] = guard_goal(self, i);
        if (verdict != GUARD_PASSED && (result.verdict == GUARD_PASSED || verdict < result.verdict)) {
            result.verdict = verdict;
            result.joint = i;
        }
    }
    return result;
}

void guard_unsent(guard *self)
{
    memcpy(self->joints, self->before, sizeof self->joints);
}

double guard_place(const guard *self, int joint)
{
    return (double)self->joints[joint].goal / self->unit;
}

int32_t guard_goal(const guard *self, int joint)
{
    return (int32_t)floor(guard_place(self, joint) + 0.5);
}

bool guard_at_rest(const guard *self)
{
    for (int i = 0; i < self->count; i++)
        if (self->joints[i].velocity != 0 || self->joints[i].acceleration != 0)
            return false;
    return true;
}
