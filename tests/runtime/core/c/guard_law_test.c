/* SPDX-License-Identifier: Apache-2.0 */
/* The safety filter's law on adversarial actions, judged from the bus's log, and against a brute-force reference.
 *
 * guard_law_test [STEPS]: adversarial actions per configuration.
 */
#include "guard_setup.h"

#include <limits.h>
#include <math.h>

/* ---- brute force: the same rules with nothing clever ---- */

/* In steps, `unit` to a count. */
typedef struct {
    int v, a, j, low, high, tracking, step_is_smaller, unit;
} plain;

static long ref_released(long v, int a, int j)
{
    while (a != 0) {
        a = a > 0 ? (a > j ? a - j : 0) : (a < -j ? a + j : 0);
        v += a;
    }
    return v;
}

static int ref_brake(const plain *l, int v, int a)
{
    long rest = ref_released(v, a, l->j);
    int best = a;
    int found = 0;
    for (int next = -l->a; next <= l->a; next++) {
        if (abs(next - a) > l->j)
            continue;
        long after = ref_released((long)v + next, next, l->j);
        /* the strongest deceleration that does not turn the sign */
        if (rest >= 0 && after >= 0 && !found) {
            best = next;
            found = 1;
        }
        if (rest < 0 && after <= 0)
            best = next;
    }
    return best;
}

static int ref_stoppable(const plain *l, int g, int v, int a)
{
    for (;;) {
        if (abs(v) > l->v)
            return l->step_is_smaller ? GUARD_CLAMPED_STEP : GUARD_CLAMPED_VELOCITY;
        if (g < l->low || g > l->high)
            return GUARD_CLAMPED_POSITION;
        if (v == 0 && a == 0)
            return GUARD_PASSED;
        a = ref_brake(l, v, a);
        v += a;
        g += v;
    }
}

static long ref_landing(const plain *l, int g, int v, int a, int moving)
{
    int u = v - moving;
    long place = g;
    while (u != 0 || a != 0) {
        a = ref_brake(l, u, a);
        u += a;
        place += u;
    }
    return place;
}

static int between(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

static int ref_step(const plain *l, guard_joint *s, int wish, int present, int *verdict)
{
    int inside = between(wish, l->low, l->high);
    int near = between(inside, present - l->tracking, present + l->tracking);
    int target = between(near, l->low, l->high);
    int wanted = target - s->goal - s->velocity;
    int first = -l->a > s->acceleration - l->j ? -l->a : s->acceleration - l->j;
    int last = l->a < s->acceleration + l->j ? l->a : s->acceleration + l->j;
    int moving = s->wish_known && abs(target - s->wish) <= l->v ? target - s->wish : 0;
    long off = wanted >= first && wanted <= last
                   ? labs(ref_landing(l, s->goal + s->velocity + wanted, s->velocity + wanted, wanted, moving) - target)
                   : 0;
    int followed = s->wish_known && s->wish == s->goal;
    int met = abs(target - s->goal) > l->v ? (l->step_is_smaller ? GUARD_CLAMPED_STEP : GUARD_CLAMPED_VELOCITY)
              : abs(wanted) > l->a         ? GUARD_CLAMPED_ACCELERATION
              : wanted < first || wanted > last || (!followed && off > (moving == 0 ? 0 : 8 * l->unit))
                  ? GUARD_CLAMPED_JERK
                  : GUARD_PASSED;
    int chosen = wanted;
    if (met != GUARD_PASSED) {
        chosen = s->goal <= target ? first : last;
        for (int a = first; a <= last && s->goal <= target; a++) /* from below: the last that does not pass it */
            if (ref_landing(l, s->goal + s->velocity + a, s->velocity + a, a, moving) <= target)
                chosen = a;
        for (int a = last; a >= first && s->goal > target; a--) /* from above likewise */
            if (ref_landing(l, s->goal + s->velocity + a, s->velocity + a, a, moving) >= target)
                chosen = a;
    }
    int safe = ref_brake(l, s->velocity, s->acceleration);
    int limit;
    while ((limit = ref_stoppable(l, s->goal + s->velocity + chosen, s->velocity + chosen, chosen)) != GUARD_PASSED) {
        met = met == GUARD_PASSED ? limit : met;
        chosen += chosen < safe ? 1 : -1;
    }
    s->acceleration = chosen;
    s->velocity += chosen;
    s->goal += s->velocity;
    s->wish = target;
    s->wish_known = true;
    *verdict = inside != wish        ? GUARD_CLAMPED_POSITION
               : met != GUARD_PASSED ? met
               : near != inside      ? GUARD_CLAMPED_TRACKING
                                     : GUARD_PASSED;
    return s->goal;
}

/* ---- the law, from the log ---- */

/* A wish as an adversary would choose it. */
static float adversarial(int mode, int k, int joint, int32_t goal, int32_t velocity, int unit)
{
    switch (mode) {
    case 0:
        return (float)(draw(5000) - 500);
    case 1:
        return 100000.0f;
    case 2:
        return -100000.0f;
    case 3:
        return (float)(2000 + 1100 * sin(0.05 * (joint + 1) * k));
    case 4:
        return draw(2) ? HIGH : LOW;
    case 5:
        return (float)(goal + velocity + draw(80 * unit + 1) - 40 * unit) / (float)unit;
    case 6:
        return (float)(goal + (velocity > 0 ? -1 : 1) * draw(200 * unit)) / (float)unit;
    default:
        return (float)(velocity >= 0 ? HIGH : LOW);
    }
}

/* Of whole counts every limit holds exactly in what was sent; of finer steps in the guard's own goals, and what was
 * sent is the nearest count to them. */
static int law(guard_limits one, int64_t period_ns, guard_version version, long steps, int against_reference)
{
    guard_limits limits[JOINTS];
    guard guard;
    int joint;
    fill(limits, one);
    limits[1].velocity *= 0.7;
    limits[2].acceleration *= 0.8;
    limits[3].jerk *= 1.5;
    limits[4].step = one.step / 3 + 1;
    limits[5].tracking = 150;
    if (guard_configure(&guard, limits, JOINTS, period_ns, version, &joint) != GUARD_CONFIG_OK)
        return 1;
    int unit = guard.unit;
    int32_t present[JOINTS] = {LOW, HIGH, 2000, 1500, 2500, 2001};
    CHECK(guard_start(&guard, present, GUARD_START_TOLERANCE, &joint));
    int32_t last[JOINTS], v[JOINTS] = {0}, a[JOINTS] = {0}, sent[JOINTS];
    memcpy(sent, present, sizeof sent);
    for (int i = 0; i < JOINTS; i++)
        last[i] = present[i] * unit;
    double T = (double)period_ns * 1e-9;
    int mode = 0, held = 0;
    for (long k = 0; k < steps; k++) {
        if (draw(40) == 0)
            mode = draw(10);
        float action[JOINTS];
        for (int i = 0; i < JOINTS; i++)
            action[i] = adversarial(mode, (int)k, i, last[i], v[i], unit);
        if (mode == 9 && draw(4) == 0)
            action[draw(JOINTS)] = NAN;
        guard_joint before[JOINTS];
        memcpy(before, guard.joints, sizeof before);
        guard_view view = {.present = present, .present_ns = k, .now_ns = k};
        int hold = mode == 8;
        guard_result result = hold ? guard_brake(&guard) : guard_step(&guard, action, JOINTS, &view);
        int refused = hold || result.verdict >= GUARD_REFUSED_NOT_FINITE;
        held = refused ? held + 1 : 0;
        for (int i = 0; i < JOINTS; i++) {
            const guard_joint_limits *l = &guard.limits[i];
            int32_t goal = guard.joints[i].goal, v1 = goal - last[i], a1 = v1 - v[i], j1 = a1 - a[i];
            /* The limits as stated, from differences over nominal T. */
            CHECK(abs(v1) / T / unit <= limits[i].velocity && abs(a1) / (T * T) / unit <= limits[i].acceleration);
            CHECK(abs(j1) / (T * T * T) / unit <= limits[i].jerk && abs(v1) <= (int64_t)limits[i].step * unit);
            CHECK(goal >= LOW * unit && goal <= HIGH * unit);
            CHECK(held <= guard.rest_ticks || v1 == 0);
            /* What the servos get: the nearest count. */
            CHECK(fabs(result.goals[i] - (double)goal / unit) <= 0.5 && result.goals[i] >= LOW &&
                  result.goals[i] <= HIGH);
            CHECK(abs(result.goals[i] - sent[i]) <= limits[i].step &&
                  abs(result.goals[i] - sent[i]) < limits[i].velocity * T + 1);
            sent[i] = result.goals[i];
            if (against_reference) {
                plain p = {l->velocity, l->acceleration,    l->jerk, l->position_min, l->position_max,
                           l->tracking, l->step_is_smaller, unit};
                guard_joint s = before[i];
                int verdict = result.joints[i];
                if (refused) {
                    CHECK(a1 == ref_brake(&p, before[i].velocity, before[i].acceleration));
                } else {
                    CHECK(ref_step(&p, &s, (int)lround((double)action[i] * unit), present[i] * unit, &verdict) == goal);
                    CHECK(verdict == result.joints[i]);
                }
            }
            last[i] = goal;
            v[i] = v1;
            a[i] = a1;
            present[i] = sent[i] + draw(61) - 30;
        }
    }
    return 0;
}

/* Adversarial steps of one configuration, and fewer of it against the reference. */
static int both(guard_limits one, int64_t period_ns, guard_version version, long steps, long referred)
{
    return law(one, period_ns, version, steps, 0) || law(one, period_ns, version, referred, 1);
}

int main(int argc, char **argv)
{
    long steps = argc > 1 ? atol(argv[1]) : 20000, few = steps / 100 + 300;
    const guard_version whole = GUARD_WHOLE_COUNTS, fine = GUARD_SIXTEENTHS;
    guard_limits one = usual();
    int failed = both(one, period_30hz, whole, steps, few) || both(one, period_30hz, fine, steps, few / 20)
                 || both(one, 11111111, fine, steps, few) || both(one, 16666667, fine, steps, few / 4);
    one.jerk = 300000; /* less jerk than acceleration: braking takes several ticks to build up */
    failed = failed || both(one, period_30hz, whole, steps, few) || both(one, 11111111, fine, steps, few);
    one.velocity = 5000;
    failed = failed || both(one, 20 * MS, whole, steps, few) || both(one, 20 * MS, fine, steps, few / 20);
    one = usual();
    one.velocity = 3900;
    failed = failed || both(one, 10 * MS, whole, steps, few) || both(one, 10 * MS, fine, steps, few);
    failed = failed || law(one, 200 * MS, whole, steps, 0) || law(one, 166 * MS, whole, few, 1);
    failed = failed || law(one, 166 * MS, fine, steps, 0);
    if (!failed)
        printf("ok, %ld adversarial steps per configuration\n", steps);
    return failed;
}
