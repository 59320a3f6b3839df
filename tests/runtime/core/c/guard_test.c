/* SPDX-License-Identifier: Apache-2.0 */
/* The safety filter, rule by rule: configuration, start, refusals, what is clamped and how it is named, following. */
#include "guard_setup.h"

#include <float.h>
#include <limits.h>
#include <math.h>

static guard made_of(guard_limits one, int64_t period_ns, guard_version version)
{
    guard_limits limits[JOINTS];
    guard guard;
    int joint;
    fill(limits, one);
    if (guard_configure(&guard, limits, JOINTS, period_ns, version, &joint) != GUARD_CONFIG_OK)
        abort();
    return guard;
}

/* In whole counts, whose numbers are easier to read: the law is the same in sixteenths (`sixteenths`). */
static guard made(guard_limits one, int64_t period_ns)
{
    return made_of(one, period_ns, GUARD_WHOLE_COUNTS);
}

static guard started_of(guard_limits one, int32_t at, int64_t period_ns, guard_version version)
{
    guard guard = made_of(one, period_ns, version);
    int32_t present[JOINTS];
    int joint;
    for (int i = 0; i < JOINTS; i++)
        present[i] = at;
    if (!guard_start(&guard, present, GUARD_START_TOLERANCE, &joint))
        abort();
    return guard;
}

static guard started(guard_limits one, int32_t at)
{
    return started_of(one, at, period_30hz, GUARD_WHOLE_COUNTS);
}

static guard_result step_all(guard *guard, float action, int32_t present)
{
    float actions[JOINTS];
    int32_t presents[JOINTS];
    for (int i = 0; i < JOINTS; i++) {
        actions[i] = action;
        presents[i] = present;
    }
    guard_view view = {.present = presents, .present_ns = 0, .now_ns = 0};
    return guard_step(guard, actions, JOINTS, &view);
}

/* ---- configuration ---- */

static guard_config_error configured_of(guard_limits one, int64_t period_ns, guard_version version)
{
    guard_limits limits[JOINTS];
    guard guard;
    int joint = -1;
    fill(limits, usual());
    limits[2] = one;
    guard_config_error error = guard_configure(&guard, limits, JOINTS, period_ns, version, &joint);
    return error != GUARD_CONFIG_OK && joint != 2 ? (guard_config_error)-1 : error;
}

static guard_config_error configured(guard_limits one, int64_t period_ns)
{
    return configured_of(one, period_ns, GUARD_WHOLE_COUNTS);
}

/* The longest brake over every state from which no limit is passed, by trying them all. */
static int slowest_rest(guard_limits one)
{
    one.position_min = -GUARD_COUNTS_MAX;
    one.position_max = GUARD_COUNTS_MAX;
    guard guard = made(one, period_30hz);
    const guard_joint_limits *limits = &guard.limits[0];
    int slowest = 0;
    for (int v = -limits->velocity; v <= limits->velocity; v++)
        for (int a = -limits->acceleration; a <= limits->acceleration; a++) {
            int ticks = 0, kept = 1;
            for (int i = 0; i < JOINTS; i++)
                guard.joints[i] = (guard_joint){.velocity = v, .acceleration = a};
            for (; !guard_at_rest(&guard); ticks++) {
                guard_brake(&guard);
                kept = kept && abs(guard.joints[0].velocity) <= limits->velocity;
            }
            if (kept && ticks > slowest)
                slowest = ticks;
        }
    return slowest;
}

static int configuration(void)
{
    guard guard = made(usual(), period_30hz);
    CHECK(guard.limits[0].velocity == 66 && guard.limits[0].acceleration == 33 && guard.limits[0].jerk == 37);
    CHECK(guard.reading_limit_ns == period_30hz * 5 / 2 && !guard.started && guard.rest_ticks == 4);
    guard_limits one = usual();
    one.step = 10;
    guard = made(one, period_30hz);
    CHECK(guard.limits[5].velocity == 10 && guard.limits[5].step_is_smaller && guard.limits[5].acceleration == 20
          && guard.limits[5].jerk == 37);
    one.step = 66;
    CHECK(!made(one, period_30hz).limits[0].step_is_smaller);
    one = usual();
    one.acceleration = 10000;
    CHECK(made(one, period_30hz).limits[0].jerk == 22); /* twice the acceleration: more cannot be used */
    one = usual();
    one.velocity = one.acceleration = one.jerk = 1e15;
    one.step = INT_MAX;
    guard = made(one, period_30hz);
    CHECK(guard.limits[0].velocity == GUARD_PER_TICK_MAX && guard.limits[0].acceleration == GUARD_PER_TICK_MAX);
    CHECK(guard.limits[0].jerk == GUARD_PER_TICK_MAX);

    one = usual();
    one.step = 20;
    CHECK(made(one, period_30hz).limits[0].acceleration == 33);
    one.step = 14;
    CHECK(made(one, period_30hz).limits[0].acceleration == 28);
    one = usual();
    one.acceleration = 13600;
    CHECK(made(one, period_30hz).limits[0].jerk == 30);
    one = usual(); /* the worst is a brake at full speed whose force must build up first */
    one.jerk = 140000;
    CHECK(made(one, period_30hz).limits[0].jerk == 5 && made(one, period_30hz).rest_ticks == slowest_rest(one));
    for (one.velocity = 300; one.velocity < 1000; one.velocity += 31)
        CHECK(made(one, period_30hz).rest_ticks == slowest_rest(one));

#define REFUSED(field, value, error)                                                                                   \
    one = usual();                                                                                                     \
    one.field = value;                                                                                                 \
    CHECK(configured(one, period_30hz) == error)
    REFUSED(position_min, HIGH, GUARD_CONFIG_RANGE);
    REFUSED(position_min, -GUARD_COUNTS_MAX - 1, GUARD_CONFIG_RANGE);
    REFUSED(position_max, GUARD_COUNTS_MAX + 1, GUARD_CONFIG_RANGE);
    REFUSED(position_min, -GUARD_COUNTS_MAX, GUARD_CONFIG_OK);
    REFUSED(position_max, GUARD_COUNTS_MAX, GUARD_CONFIG_OK);
    REFUSED(position_min, HIGH - 1, GUARD_CONFIG_OK);
    REFUSED(scale, 0.0, GUARD_CONFIG_RANGE);
    REFUSED(scale, (double)NAN, GUARD_CONFIG_RANGE);
    REFUSED(offset, (double)INFINITY, GUARD_CONFIG_RANGE);
    REFUSED(tracking, 0, GUARD_CONFIG_RANGE);
    REFUSED(tracking, 1, GUARD_CONFIG_OK);
    REFUSED(tracking, GUARD_COUNTS_MAX, GUARD_CONFIG_OK);
    REFUSED(tracking, GUARD_COUNTS_MAX + 1, GUARD_CONFIG_RANGE);
    REFUSED(velocity, 29.9, GUARD_CONFIG_RATE);
    REFUSED(velocity, 30.1, GUARD_CONFIG_OK);
    REFUSED(velocity, (double)NAN, GUARD_CONFIG_RATE);
    REFUSED(acceleration, 899.0, GUARD_CONFIG_RATE);
    REFUSED(acceleration, 901.0, GUARD_CONFIG_OK);
    REFUSED(jerk, 26999.0, GUARD_CONFIG_RATE);
    REFUSED(jerk, 27001.0, GUARD_CONFIG_OK);
    REFUSED(step, 0, GUARD_CONFIG_RATE);
    REFUSED(step, 1, GUARD_CONFIG_OK);
    one = usual();
    one.velocity = 20000;
    one.step = 1000;
    one.acceleration = 901;
    CHECK(configured(one, period_30hz) == GUARD_CONFIG_REST);
    one.velocity = 512 * 30; /* 511 counts a tick at 1 count a tick^2: one tick more to let the acceleration go */
    CHECK(configured(one, period_30hz) == GUARD_CONFIG_OK);
    one.velocity = 514 * 30;
    CHECK(configured(one, period_30hz) == GUARD_CONFIG_REST);
    return 0;
}

/* ---- start, refusals ---- */

static int starting(void)
{
    guard guard = made(usual(), period_30hz);
    int32_t present[JOINTS] = {LOW, HIGH, LOW - 2, HIGH + 2, 2000, 2001};
    int joint;
    CHECK(guard_start(&guard, present, GUARD_START_TOLERANCE, &joint) && guard.started && guard_at_rest(&guard));
    guard_result first = guard_brake(&guard);
    const int32_t expected[JOINTS] = {LOW, HIGH, LOW, HIGH, 2000, 2001};
    CHECK(first.verdict == GUARD_PASSED && first.joint == -1 && memcmp(first.goals, expected, sizeof expected) == 0);
    present[3] = HIGH + GUARD_OUTSIDE_MAX + 1;
    CHECK(!guard_start(&guard, present, GUARD_START_TOLERANCE, &joint) && joint == 3 && !guard.started);
    CHECK(step_all(&guard, 2000, 2000).verdict == GUARD_REFUSED_NO_READING);
    present[3] = HIGH;
    present[0] = LOW - GUARD_OUTSIDE_MAX - 1;
    CHECK(!guard_start(&guard, present, GUARD_START_TOLERANCE, &joint) && joint == 0);
    present[0] = INT_MIN;
    CHECK(!guard_start(&guard, present, GUARD_START_TOLERANCE, &joint) && joint == 0);
    present[0] = INT_MAX;
    CHECK(!guard_start(&guard, present, GUARD_START_TOLERANCE, &joint) && joint == 0);
    return 0;
}

/* From outside the soft limits goals go inwards only, and once inside they stay there. */
static int starting_outside(void)
{
    const int32_t starts[] = {LOW - 3, LOW - GUARD_OUTSIDE_MAX, HIGH + 3, HIGH + GUARD_OUTSIDE_MAX};
    for (size_t k = 0; k < sizeof starts / sizeof starts[0]; k++) {
        guard guard = made(usual(), period_30hz);
        int32_t present[JOINTS];
        int joint;
        for (int i = 0; i < JOINTS; i++)
            present[i] = starts[k];
        CHECK(guard_start(&guard, present, GUARD_START_TOLERANCE, &joint));
        CHECK(guard_brake(&guard).goals[0] == starts[k]);
        int32_t last = starts[k], low = starts[k] < LOW ? starts[k] : LOW, high = starts[k] > HIGH ? starts[k] : HIGH;
        for (int tick = 0; tick < 400; tick++) {
            int32_t wish = tick < 100   ? starts[k] * 2 - 2000
                           : tick < 200 ? 2000
                           : tick < 300 ? LOW - 4000
                                        : HIGH + 4000;
            int32_t goal = step_all(&guard, (float)wish, last).goals[0];
            CHECK(goal >= low && goal <= high);
            low = goal < LOW ? goal : LOW;
            high = goal > HIGH ? goal : HIGH;
            last = goal;
        }
        CHECK(last == HIGH);
    }
    guard guard = made(usual(), period_30hz);
    guard_start_joint(&guard, 2, HIGH + 9);
    CHECK(guard.joints[2].goal == HIGH + 9 && guard.before[2].high == HIGH + 9 && guard.joints[1].goal != HIGH + 9);
    return 0;
}

static int refusals(void)
{
    const float bad[] = {
        NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, GUARD_COUNTS_MAX + 1.0f, -GUARD_COUNTS_MAX - 1.0f};
    int32_t present[JOINTS];
    guard_view view = {.present = present, .present_ns = 10, .now_ns = 10};
    guard_limits soft = usual();
    soft.jerk = 300000;
    for (int i = 0; i < JOINTS; i++)
        present[i] = 2000;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        for (int joint = 0; joint < JOINTS; joint++) {
            guard guard = started(soft, 2000);
            step_all(&guard, 2005, 2000);
            step_all(&guard, 2015, 2000);
            float action[JOINTS] = {2030, 2030, 2030, 2030, 2030, 2030};
            action[joint] = bad[i];
            guard_result result = guard_step(&guard, action, JOINTS, &view);
            CHECK(result.verdict == GUARD_REFUSED_NOT_FINITE && result.joint == joint);
            for (int k = 0; k < JOINTS; k++) { /* the brake's goals, whatever was asked */
                CHECK(result.joints[k] == GUARD_REFUSED_NOT_FINITE);
                CHECK(result.goals[k] == 2015 + 10 - 6); /* the acceleration of 5 falls by the jerk limit of 11 */
            }
        }
    guard guard = started(usual(), 2000);
    float action[JOINTS + 1] = {2010, 2010, 2010, 2010,
                                2010, NAN,  NAN}; /* what is beyond the length is not looked at */
    guard_result result = guard_step(&guard, action, JOINTS - 1, &view);
    CHECK(result.verdict == GUARD_REFUSED_JOINTS && result.joint == JOINTS - 1 && result.goals[0] == 2000);
    action[JOINTS - 1] = 2010;
    result = guard_step(&guard, action, JOINTS + 1, &view);
    CHECK(result.verdict == GUARD_REFUSED_JOINTS && result.joint == -1 && result.goals[0] == 2000);
    CHECK(guard_step(&guard, action, 0, &view).verdict == GUARD_REFUSED_JOINTS);
    CHECK(step_all(&guard, GUARD_COUNTS_MAX, 2000).verdict ==
          GUARD_CLAMPED_POSITION); /* absurd, but the last that is not refused */
    guard = started(usual(), 2000);

    view.now_ns = view.present_ns + period_30hz * 5 / 2;
    CHECK(guard_step(&guard, action, JOINTS, &view).verdict == GUARD_PASSED);
    view.now_ns++;
    result = guard_step(&guard, action, JOINTS, &view);
    CHECK(result.verdict == GUARD_REFUSED_NO_READING && result.joint == -1);
    view.present = NULL;
    view.now_ns = view.present_ns;
    CHECK(guard_step(&guard, action, JOINTS, &view).verdict == GUARD_REFUSED_NO_READING);
    return 0;
}

/* ---- what passes, what is clamped and named ---- */

static int naming(void)
{
    guard guard = started(usual(), 2000);
    guard_result result = step_all(&guard, 2018.4f, 2000);
    CHECK(result.verdict == GUARD_PASSED && result.joint == -1 && result.goals[3] == 2018);
    CHECK(!guard_at_rest(&guard));
    CHECK(step_all(&guard, 2051, 2000).goals[0] == 2051 && step_all(&guard, 2084, 2000).goals[0] == 2084);
    CHECK(guard.joints[0].velocity == 33 && guard.joints[0].acceleration == 0);
    result = step_all(&guard, 2085, 2000); /* from 33 to 1 count a tick: -32, jerk 32 */
    CHECK(result.verdict == GUARD_PASSED && result.goals[0] == 2085);
    result = step_all(&guard, 2118, 2000); /* +32 after -32 */
    CHECK(result.verdict == GUARD_CLAMPED_JERK && result.joint == 0 && result.goals[0] == 2085 + 1 + 5);
    guard = started(usual(), 2000); /* after a hold nothing is known of how the wish moves */
    CHECK(step_all(&guard, 2018, 2000).verdict == GUARD_PASSED && step_all(&guard, 2036, 2000).verdict == GUARD_PASSED);
    guard_brake(&guard);
    CHECK(guard.joints[0].velocity == 0 && guard.joints[0].acceleration == -18 && !guard_at_rest(&guard));
    guard_brake(&guard);
    CHECK(guard_at_rest(&guard) && guard.joints[0].goal == 2036);
    CHECK(step_all(&guard, 2066, 2000).verdict == GUARD_CLAMPED_JERK);
    guard = started(usual(), 2000); /* in reach, but the goal would shoot past it */
    CHECK(step_all(&guard, 2019, 2000).verdict == GUARD_CLAMPED_JERK);

    guard = started(usual(), 2000); /* goals that were not sent are taken back, from a step and from a brake */
    CHECK(step_all(&guard, 2018, 2000).goals[0] == 2018);
    guard_joint sent = guard.joints[0];
    CHECK(step_all(&guard, 2040, 2000).goals[0] > 2018);
    guard_unsent(&guard);
    CHECK(guard.joints[0].goal == 2018 && guard.joints[0].velocity == sent.velocity);
    guard_brake(&guard);
    guard_unsent(&guard);
    CHECK(guard.joints[5].goal == 2018 && guard.joints[5].acceleration == sent.acceleration);

    guard = started(usual(), 2000);
    result = step_all(&guard, 2034, 2000);
    CHECK(result.verdict == GUARD_CLAMPED_ACCELERATION && result.goals[0] <= 2033);
    guard = started(usual(), 2000);
    CHECK(step_all(&guard, 2066, 2000).verdict == GUARD_CLAMPED_ACCELERATION);
    guard = started(usual(), 2000);
    CHECK(step_all(&guard, 2067, 2000).verdict == GUARD_CLAMPED_VELOCITY);
    guard_limits slow = usual();
    slow.step = 20;
    guard = started(slow, 2000);
    CHECK(step_all(&guard, 2021, 2000).verdict == GUARD_CLAMPED_STEP);
    guard = started(usual(), 2990);
    CHECK(step_all(&guard, HIGH + 1, 2990).verdict == GUARD_CLAMPED_POSITION);
    guard = started(usual(), 1010);
    CHECK(step_all(&guard, LOW - 1, 1010).verdict == GUARD_CLAMPED_POSITION);
    guard = started(usual(), 2960);
    guard = started(usual(), 2940);
    CHECK(step_all(&guard, 2958, 2940).verdict == GUARD_PASSED);
    result = step_all(&guard, 2992, 2940); /* within every limit now, but it could not be stopped before 3000 */
    CHECK(result.verdict == GUARD_CLAMPED_POSITION && result.goals[0] > 2976 && result.goals[0] < 2992);
    guard = started(usual(), 2960);
    CHECK(step_all(&guard, 2975, 2960).verdict == GUARD_PASSED && step_all(&guard, 2990, 2960).verdict == GUARD_PASSED);
    CHECK(step_all(&guard, 3000, 2960).verdict == GUARD_PASSED); /* just in time */

    guard_limits near = usual();
    near.tracking = 10;
    guard = started(near, 2000);
    result = step_all(&guard, 2011, 2000);
    CHECK(result.verdict == GUARD_CLAMPED_TRACKING && result.goals[0] == 2010);
    guard = started(near, 2000);
    result = step_all(&guard, 1989, 2000);
    CHECK(result.verdict == GUARD_CLAMPED_TRACKING && result.goals[0] == 1990);
    guard = started(near, 2000);
    CHECK(step_all(&guard, 2010, 2000).verdict == GUARD_PASSED);
    guard = started(near, HIGH); /* a joint pushed far outside pulls no goal out of the soft limits */
    CHECK(step_all(&guard, HIGH, INT_MAX).goals[0] == HIGH);
    guard = started(near, LOW);
    CHECK(step_all(&guard, LOW, INT_MIN).goals[0] == LOW);

    /* The first limit in the order of the filter is told, with its joint. */
    guard = started(usual(), 2000);
    float action[JOINTS] = {2000, 2100, 2034, 4000, 2000, 5000};
    int32_t present[JOINTS] = {2000, 2000, 2000, 2000, 2000, 2000};
    guard_view view = {.present = present};
    result = guard_step(&guard, action, JOINTS, &view);
    CHECK(result.verdict == GUARD_CLAMPED_POSITION && result.joint == 3);
    CHECK(result.joints[0] == GUARD_PASSED && result.joints[1] == GUARD_CLAMPED_VELOCITY);
    CHECK(result.joints[2] == GUARD_CLAMPED_ACCELERATION && result.joints[5] == GUARD_CLAMPED_POSITION);

    guard_limits mapped = usual(); /* joint units to counts, rounded to the nearest */
    mapped.scale = -11.375;
    mapped.offset = 2048;
    guard = started(mapped, 2048);
    CHECK(step_all(&guard, 1.0f, 2048).goals[0] == 2037);
    return 0;
}

/* A wish within the limits passes unchanged; a far one is reached without overshoot and held. */
static int following(void)
{
    for (int phase = 0; phase < 64; phase++) {
        guard guard = started(usual(), 2000);
        for (int k = 0; k < 300; k++) { /* v <= 30, a <= 8 + rounding, from rest */
            double ramp = k < 60 ? k / 60.0 : 1.0;
            float wish = (float)rint(2000 + 500 * ramp * ramp * (1 - cos(0.12 * k + phase * 0.001)) / 2);
            guard_result result = step_all(&guard, wish, 2000);
            CHECK(result.verdict == GUARD_PASSED && result.goals[2] == (int32_t)wish);
        }
    }
    for (int far = 1; far < 900; far += 7) {
        guard guard = started(usual(), 2000);
        int k = 0;
        for (; k < 40; k++) {
            int32_t goal = step_all(&guard, (float)(2000 + far), 2000).goals[1];
            CHECK(goal <= 2000 + far);
            if (goal == 2000 + far && guard_at_rest(&guard))
                break;
        }
        CHECK(k <= far / 66 + 8);
        for (k = 0; k < 5; k++)
            CHECK(step_all(&guard, (float)(2000 + far), 2000).goals[1] == 2000 + far);
    }
    /* The wish has just come to where the goal is, and the goal runs ahead of it: from there, too, a brake ends on the
     * wish or last before it, never beyond. */
    guard fast = started(usual(), 2000);
    fast.joints[4] =
        (guard_joint){.goal = 2000, .velocity = -40, .low = LOW, .high = HIGH, .wish = 2020, .wish_known = true};
    CHECK(step_all(&fast, 2000, 2000).goals[4] == 1992);
    /* After a jump onto something that moves steadily, the goal catches up and then follows it exactly. */
    guard guard = started(usual(), 1200);
    int exact = 0;
    for (int k = 0; k < 60; k++) {
        int32_t wish = 1500 + 20 * k;
        exact = step_all(&guard, (float)wish, 1200).goals[0] == wish ? exact + 1 : 0;
    }
    CHECK(exact >= 40);
    return 0;
}

/* The same law sixteen times finer: what is said in counts is taken and told in counts. */
static int sixteenths(void)
{
    const int64_t period_90hz = 11111111;
    guard guard = made_of(usual(), period_90hz, GUARD_SIXTEENTHS);
    const guard_joint_limits *l = &guard.limits[0];
    CHECK(guard.unit == 16 && made(usual(), period_90hz).unit == 1);
    CHECK(l->position_min == 16 * LOW && l->position_max == 16 * HIGH && l->tracking == 16 * 4000);
    CHECK(l->velocity == 355 && l->acceleration == 59 && l->jerk == 21); /* 22.2 counts, 3.7, 1.37 */
    CHECK(guard_corner(&guard, 0) == 21.0 / 16); /* the jerk is what limits it */
    guard_limits one = usual();
    one.jerk *= 4;
    one.scale = -10;
    guard = made_of(one, period_90hz, GUARD_SIXTEENTHS);
    CHECK(fabs(guard_corner(&guard, 5) - 59.0 / 160) < 1e-12); /* the acceleration, in joint units */
    one = usual();
    one.step = 22;
    CHECK(made_of(one, period_90hz, GUARD_SIXTEENTHS).limits[0].velocity == 352
          && made_of(one, period_90hz, GUARD_SIXTEENTHS).limits[0].step_is_smaller);
    one.step = 23;
    CHECK(!made_of(one, period_90hz, GUARD_SIXTEENTHS).limits[0].step_is_smaller);
    one.velocity = one.acceleration = one.jerk = 1e15;
    one.step = INT_MAX;
    CHECK(made_of(one, period_90hz, GUARD_SIXTEENTHS).limits[0].velocity == 16 * GUARD_PER_TICK_MAX);
    one = usual();
    one.velocity = 5.7; /* a sixteenth of a count a tick is 5.6 */
    one.acceleration = one.jerk = 1e6;
    CHECK(configured_of(one, period_90hz, GUARD_SIXTEENTHS) == GUARD_CONFIG_OK);
    one.velocity = 5.6;
    CHECK(configured_of(one, period_90hz, GUARD_SIXTEENTHS) == GUARD_CONFIG_RATE);
    CHECK(configured_of(usual(), period_90hz, (guard_version)0) != GUARD_CONFIG_OK
          && configured_of(usual(), period_90hz, (guard_version)3) != GUARD_CONFIG_OK);

    /* From where the arm is, in counts; also where that is outside. */
    int32_t present[JOINTS] = {LOW, HIGH, LOW - 2, HIGH + 2, 2000, HIGH + 9};
    int joint;
    CHECK(guard_start(&guard, present, GUARD_START_TOLERANCE, &joint) && guard.joints[4].goal == 32000);
    const int32_t expected[JOINTS] = {LOW, HIGH, LOW, HIGH, 2000, HIGH + 9};
    CHECK(memcmp(guard_brake(&guard).goals, expected, sizeof expected) == 0);
    guard_start_joint(&guard, 2, 1234);
    CHECK(guard.joints[2].goal == 16 * 1234 && guard_goal(&guard, 2) == 1234 && guard_place(&guard, 2) == 1234.0);

    /* The nearest count goes to the servos, of every goal. */
    const struct {
        int32_t goal, count;
    } rounded[] = {{16 * 2000 + 7, 2000}, {16 * 2000 + 8, 2001}, {16 * 2000 - 8, 2000}, {16 * 2000 - 9, 1999},
                   {-8, 0}, {-9, -1}, {-24, -1}, {-25, -2}, {8, 1}, {7, 0}};
    for (size_t i = 0; i < sizeof rounded / sizeof rounded[0]; i++) {
        guard.joints[1].goal = rounded[i].goal;
        CHECK(guard_goal(&guard, 1) == rounded[i].count && guard_place(&guard, 1) == rounded[i].goal / 16.0);
    }

    /* A wish between two counts is one, and is followed: ten counts a second is a ninth of a count a tick. */
    guard = started_of(usual(), 2000, period_90hz, GUARD_SIXTEENTHS);
    for (int k = 1; k <= 900; k++) {
        float wish = 2000 + (float)k / 9;
        guard_result result = step_all(&guard, wish, 2000);
        CHECK(result.verdict == GUARD_PASSED && fabs(guard_place(&guard, 3) - (double)wish) <= 1.0 / 32);
        CHECK(result.goals[3] == guard_goal(&guard, 3));
    }
    CHECK(step_all(&guard, 2100.0625f, 2000).goals[0] == 2100 && guard.joints[0].goal == 16 * 2100 + 1);

    /* Tracking in counts of the reading; a joint pushed far away does not overflow it. */
    one = usual();
    one.tracking = 10;
    guard = started_of(one, 2000, period_90hz, GUARD_SIXTEENTHS);
    for (int k = 0; k < 40; k++)
        step_all(&guard, 2300, 2000);
    CHECK(guard.joints[0].goal == 16 * 2010 && step_all(&guard, 2300, 2000).verdict == GUARD_CLAMPED_TRACKING);
    for (int k = 0; k < 900; k++)
        CHECK(step_all(&guard, 2010, INT_MAX).goals[0] <= HIGH);
    CHECK(guard_goal(&guard, 0) == HIGH); /* the reading pulls the goal, up to the soft limit */

    /* A moving wish is joined where a brake would end beside it by up to eight counts. */
    guard = started_of(usual(), 1200, period_90hz, GUARD_SIXTEENTHS);
    int exact = 0;
    for (int k = 0; k < 180; k++) {
        float wish = 1500 + 6.6875f * (float)k;
        step_all(&guard, wish, 1200);
        exact = guard_place(&guard, 0) == (double)wish ? exact + 1 : 0;
    }
    CHECK(exact >= 120);
    return 0;
}

/* ---- arms of one to sixteen joints ---- */

static int joint_counts(void)
{
    guard_limits limits[ARM_JOINTS_MAX];
    guard guard;
    int joint;
    for (int i = 0; i < ARM_JOINTS_MAX; i++)
        limits[i] = usual();
    CHECK(guard_configure(&guard, limits, 0, period_30hz, GUARD_SIXTEENTHS, &joint) == GUARD_CONFIG_RANGE &&
          joint == 0);
    CHECK(guard_configure(&guard, limits, ARM_JOINTS_MAX + 1, period_30hz, GUARD_SIXTEENTHS, &joint) ==
          GUARD_CONFIG_RANGE);
    for (int joints = 1; joints <= ARM_JOINTS_MAX; joints++) {
        int32_t present[ARM_JOINTS_MAX];
        float action[ARM_JOINTS_MAX + 1];
        for (int i = 0; i <= ARM_JOINTS_MAX; i++) {
            action[i] = 2500;
            present[i % ARM_JOINTS_MAX] = 2000;
        }
        CHECK(guard_configure(&guard, limits, joints, period_30hz, GUARD_SIXTEENTHS, &joint) == GUARD_CONFIG_OK);
        CHECK(guard_start(&guard, present, 0, &joint));
        guard_view view = {.present = present};
        for (int tick = 0; tick < 3; tick++) {
            guard_result result = guard_step(&guard, action, joints, &view);
            for (int i = 0; i < ARM_JOINTS_MAX; i++) /* every joint moves, and none that is not there */
                CHECK(i < joints ? result.goals[i] > 2000 : result.goals[i] == 0);
        }
        CHECK(guard_step(&guard, action, joints + 1, &view).verdict == GUARD_REFUSED_JOINTS);
    }
    return 0;
}

int main(void)
{
    return joint_counts() || configuration() || starting() || starting_outside() || refusals() || naming() ||
           following() || sixteenths();
}
