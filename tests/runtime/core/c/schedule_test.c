/* SPDX-License-Identifier: Apache-2.0 */
/* Which action of which chunk is due: the rules one by one, then random interleavings against an oracle.
 *
 * schedule_test [INTERLEAVINGS]
 */
#include "check.h"
#include "schedule.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SESSION = 7, LIMIT_TICKS = 60 };
static const int64_t T = 33333333;

static schedule schedules;
static chunk data;
static uint64_t seed = 5;

static int draw(int n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (uint64_t)n);
}

/* Actions stand `action_ns` apart. */
static void begin_with(int64_t action_ns, int blend_actions)
{
    schedule_config config = {.session = SESSION, .joints = JOINTS, .blend_actions = blend_actions};
    memset(config.digest, 0xd1, DIGEST_BYTES);
    for (int i = 0; i < JOINTS; i++)
        config.rest_counts[i] = 10;
    schedule_init(&schedules, &config, T, action_ns);
}

/* One action a tick. */
static void begin(int blend_actions)
{
    begin_with(T, blend_actions);
}

/* The reading of a tick at its nominal time; every joint at `position`. */
static void read_joints(int64_t tick, int32_t position)
{
    int32_t positions[JOINTS];
    for (int i = 0; i < JOINTS; i++)
        positions[i] = position;
    schedule_note_reading(&schedules, tick, tick * T, positions);
}

/* Action i of a chunk is 1000 * (sequence % 1000) + i in every joint: float32 tells tenths of it. */
static chunk *made(chunk_kind kind, int64_t sequence, int64_t tick, uint32_t n)
{
    memset(&data, 0, sizeof data);
    data.kind = kind;
    data.n = n;
    data.joints = JOINTS;
    data.session = SESSION;
    memset(data.digest, 0xd1, DIGEST_BYTES);
    data.observation_sequence = sequence;
    data.observation_tick = tick;
    data.observation_ns = tick * T;
    for (uint32_t i = 0; i < n * JOINTS; i++)
        data.actions[i] = (float)(1000 * (sequence % 1000) + i / JOINTS);
    return &data;
}

static chunk_verdict offer_at(const chunk *chunk, int64_t tick, int32_t present)
{
    int32_t positions[JOINTS];
    for (int i = 0; i < JOINTS; i++)
        positions[i] = present;
    schedule_view view = {
        .tick = tick, .now_ns = tick * T + T / 3, .age_limit_ns = LIMIT_TICKS * T, .present = positions};
    return schedule_offer(&schedules, chunk, &view);
}

static int moving(void)
{
    begin(0);
    for (int64_t k = 0; k <= 20; k++)
        read_joints(k, 2000);
    CHECK(!schedule_due(&schedules, 20).due);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 15, 10), 20, 2000) == CHUNK_TAKEN); /* five ticks late: five actions lost */
    schedule_action action = schedule_due(&schedules, 20);
    CHECK(action.due && action.index == 5 && action.sequence == 1 && action.action[0] == 1005.0f &&
          action.action[5] == 1005.0f);
    CHECK(schedule_due(&schedules, 24).action[3] == 1009.0f);
    action = schedule_due(&schedules, 25);
    CHECK(!action.due && action.sequence == -1 && action.index == -1);
    CHECK(!schedule_due(&schedules, 14).due);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 11, 10), 21, 2000) == CHUNK_LATE); /* the last was due at tick 20 */
    CHECK(offer_at(made(CHUNK_MOVING, 2, 12, 10), 21, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 21).action[0] == 2009.0f);
    schedule_drop(&schedules);
    CHECK(!schedule_due(&schedules, 21).due);
    return 0;
}

static int refusals(void)
{
    begin(0);
    for (int64_t k = 0; k <= 100; k++)
        read_joints(k, 2000);
    schedule_arm(&schedules, 90);
    chunk *chunk = made(CHUNK_MOVING, 3, 98, 20);
    chunk->session = SESSION + 1;
    CHECK(offer_at(chunk, 100, 2000) == CHUNK_SESSION);
    chunk = made(CHUNK_MOVING, 3, 98, 20);
    chunk->digest[31] ^= 1;
    CHECK(offer_at(chunk, 100, 2000) == CHUNK_DIGEST);
    CHECK(offer_at(made(CHUNK_MOVING, 3, 89, 20), 100, 2000) == CHUNK_ORDER); /* seen before arming */
    CHECK(offer_at(made(CHUNK_MOVING, 3, -1, 20), 100, 2000) == CHUNK_ORDER);
    CHECK(offer_at(made(CHUNK_MOVING, 3, 101, 20), 100, 2000) == CHUNK_FUTURE);
    CHECK(offer_at(made(CHUNK_MOVING, 3, 100, 20), 100, 2000) == CHUNK_TAKEN);
    CHECK(offer_at(made(CHUNK_MOVING, 3, 100, 20), 100, 2000) == CHUNK_ORDER); /* a duplicate */
    CHECK(offer_at(made(CHUNK_MOVING, 2, 100, 20), 100, 2000) == CHUNK_ORDER);
    CHECK(offer_at(made(CHUNK_MOVING, 4, 90, 20), 100, 2000) == CHUNK_TAKEN);

    begin(0);
    read_joints(10, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 10, 200), 10 + LIMIT_TICKS, 2000) ==
          CHUNK_AGE); /* a third of a tick too old */
    CHECK(offer_at(made(CHUNK_MOVING, 1, 10, 200), 9 + LIMIT_TICKS, 2000) == CHUNK_TAKEN);
    chunk = made(CHUNK_MOVING, 2, 10, 200); /* a wrong time makes an observation no younger */
    chunk->observation_ns += 1000 * T;
    CHECK(offer_at(chunk, 10 + LIMIT_TICKS, 2000) == CHUNK_AGE);
    chunk = made(CHUNK_MOVING, 2, 10, 200);
    chunk->observation_ns -= LIMIT_TICKS * T;
    CHECK(offer_at(chunk, 11, 2000) == CHUNK_AGE);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 12, 200), 13, 2000) == CHUNK_AGE); /* a tick without a reading */
    read_joints(10 + SCHEDULE_HISTORY, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 10, 200), 11, 2000) == CHUNK_AGE); /* its reading is forgotten */
    return 0;
}

static int rest(void)
{
    begin(0);
    for (int64_t k = 0; k <= 60; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_REST, 1, 30, 8), 60, 2010) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 60).index == 0 && schedule_due(&schedules, 67).index == 7 &&
          !schedule_due(&schedules, 68).due);
    CHECK(offer_at(made(CHUNK_REST, 2, 30, 8), 60, 2011) == CHUNK_MOVED);
    CHECK(offer_at(made(CHUNK_REST, 2, 30, 8), 60, 1989) == CHUNK_MOVED);
    CHECK(offer_at(made(CHUNK_REST, 2, 30, 8), 60, 1990) == CHUNK_TAKEN);
    schedule_note_goal(&schedules, 61, false);
    CHECK(offer_at(made(CHUNK_REST, 3, 31, 8), 60, 2000) == CHUNK_TAKEN);
    schedule_note_goal(&schedules, 40, true);
    CHECK(offer_at(made(CHUNK_REST, 4, 40, 8), 60, 2000) == CHUNK_MOVED); /* that goal was written after the reading */
    CHECK(offer_at(made(CHUNK_REST, 4, 41, 8), 60, 2000) == CHUNK_TAKEN);
    schedule_view blind = {.tick = 60, .now_ns = 60 * T, .age_limit_ns = LIMIT_TICKS * T, .present = NULL};
    CHECK(schedule_offer(&schedules, made(CHUNK_REST, 5, 60, 8), &blind) == CHUNK_MOVED);
    schedule_arm(&schedules, 60);
    CHECK(!schedule_due(&schedules, 60).due);
    CHECK(offer_at(made(CHUNK_REST, 1, 60, 8), 60, 2000) ==
          CHUNK_TAKEN); /* arming forgot the sequence; nothing moved since */
    return 0;
}

/* Actions that stand further apart than ticks, and closer: each is due at its own time, a line lies between two. */
static int rates(void)
{
    begin_with(3 * T, 0);
    for (int64_t k = 0; k <= 60; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 15, 5), 20, 2000) ==
          CHUNK_TAKEN); /* five ticks late: one action and two thirds */
    schedule_action action = schedule_due(&schedules, 20);
    CHECK(action.due && action.index == 1 && action.sequence == 1 && action.action[4] == 1001.0f + (float)(2.0 / 3.0));
    CHECK(schedule_left(&schedules, 20) == 3 && schedule_left(&schedules, 21) == 2 &&
          schedule_left(&schedules, 26) == 1);
    action = schedule_due(&schedules, 21);
    CHECK(action.action[0] == 1002.0f && action.index == 2);
    action = schedule_due(&schedules, 26);
    CHECK(action.index == 3 && action.action[0] == 1003.0f + (float)(2.0 / 3.0));
    action = schedule_due(&schedules, 27); /* the last, at its time and not a tick longer */
    CHECK(action.due && action.index == 4 && action.action[5] == 1004.0f && schedule_left(&schedules, 27) == 0);
    CHECK(!schedule_due(&schedules, 28).due && schedule_left(&schedules, 28) == 0 && !schedule_due(&schedules, 14).due);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 18, 5), 30, 2000) == CHUNK_TAKEN);
    CHECK(offer_at(made(CHUNK_MOVING, 3, 18, 5), 31, 2000) == CHUNK_LATE);
    CHECK(offer_at(made(CHUNK_REST, 3, 40, 2), 50, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 50).action[0] == 3000.0f && schedule_due(&schedules, 53).action[0] == 3001.0f);
    CHECK(!schedule_due(&schedules, 54).due);

    begin_with(T / 2, 0); /* two actions a tick, the last in between two ticks */
    for (int64_t k = 0; k <= 60; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 10, 6), 10, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 10).action[0] == 1000.0f && schedule_due(&schedules, 11).index == 2);
    action = schedule_due(&schedules, 12);
    CHECK(action.index == 4 && action.action[0] > 1003.9f && action.action[0] < 1004.1f &&
          schedule_left(&schedules, 12) == 1);
    action = schedule_due(&schedules, 13);
    CHECK(action.due && action.index == 5 && action.action[0] == 1005.0f && !schedule_due(&schedules, 14).due);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 10, 6), 14, 2000) == CHUNK_LATE);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 14, 1), 14, 2000) == CHUNK_TAKEN && schedule_due(&schedules, 14).index == 0);
    CHECK(!schedule_due(&schedules, 15).due);

    begin_with(3 * T, 2); /* blended over two actions, which are six ticks */
    for (int64_t k = 0; k <= 60; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 0, 20), 0, 2000) == CHUNK_TAKEN);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 30, 20), 30, 2000) == CHUNK_TAKEN);
    for (int i = 0; i < 7; i++) {
        float old = 1010.0f + (float)(i / 3.0), new = 2000.0f + (float)(i / 3.0),
              share = i < 6 ? (float)(i + 1) / 7.0f : 1.0f;
        float off = schedule_due(&schedules, 30 + i).action[1] - (old + share * (new - old));
        CHECK(off < 0.01f && off > -0.01f);
    }
    return 0;
}

/* Corners that a joint cannot turn in a tick are rounded, of that joint alone; a line without them is followed. */
static int corners(void)
{
    begin_with(3 * T, 0);
    schedule_round_corners(&schedules, 0, 0.5);
    schedule_round_corners(&schedules, 1, 2.7); /* 5 / 3 units a tick after -1: 8 / 3 */
    for (int64_t k = 0; k <= 200; k++)
        read_joints(k, 2000);
    chunk *waves = made(CHUNK_MOVING, 1, 0, 21);
    for (int i = 0; i < 21 * JOINTS; i++)
        waves->actions[i] += i / JOINTS % 2 ? 4.0f : 0.0f;
    CHECK(offer_at(waves, 0, 2000) == CHUNK_TAKEN);
    for (int64_t tick = 0; tick <= 60; tick++) {
        const float *action = schedule_due(&schedules, tick).action;
        float straight = 1000.0f + (float)tick / 3, far = tick < 9 || tick > 51 ? 2.01f : 0.01f;
        float on_line = straight + (float)abs((int)((tick + 3) % 6) - 3) * 4 / 3;
        CHECK(fabsf(action[0] - straight - 2) < far && fabsf(action[1] - on_line) < 0.01f &&
              fabsf(action[2] - on_line) < 0.01f);
    }
    /* Both ends are met, however the line bends there. */
    CHECK(fabsf(schedule_due(&schedules, 0).action[0] - 1000) < 0.01f &&
          fabsf(schedule_due(&schedules, 60).action[0] - 1020) < 0.01f);

    /* One corner: the joint turns it in four actions, and is on the line outside them. */
    chunk *corner = made(CHUNK_MOVING, 2, 60, 21);
    for (int i = 11; i < 21; i++)
        corner->actions[i * JOINTS] = corner->actions[10 * JOINTS];
    CHECK(offer_at(corner, 60, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 90 - 5).action[0] ==
          schedule_due(&schedules, 90 - 5).action[2]); /* 1 / 9 a tick turns it */
    schedule_round_corners(&schedules, 0, 0.1);
    float before = schedule_due(&schedules, 60).action[0], most = 0, velocity = 1.0f / 3;
    for (int64_t tick = 61; tick <= 120; tick++) {
        const float *action = schedule_due(&schedules, tick).action;
        float on_line = tick < 90 ? action[2] : 2010.0f, change = fabsf(action[0] - before - velocity);
        velocity = action[0] - before;
        before = action[0];
        most = change > most ? change : most;
        CHECK(fabsf(action[0] - on_line) < (tick <= 84 || tick >= 96 ? 0.001f : 0.4f));
    }
    CHECK(most < 0.07f); /* instead of a third of a unit a tick at once */

    /* What is not a number counts when it is due, and not before. */
    chunk *broken = made(CHUNK_MOVING, 3, 120, 21);
    broken->actions[5 * JOINTS] += 9;
    broken->actions[7 * JOINTS] = NAN;
    CHECK(offer_at(broken, 120, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 135).action[0] == 3014.0f && isnan(schedule_due(&schedules, 141).action[0]));

    /* A chunk of one action. */
    CHECK(offer_at(made(CHUNK_MOVING, 4, 150, 1), 150, 2000) == CHUNK_TAKEN &&
          schedule_due(&schedules, 150).action[0] == 4000.0f);
    return 0;
}

static int blending(void)
{
    begin(3);
    for (int64_t k = 0; k <= 30; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 10, 14), 10, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 10).action[0] == 1000.0f); /* nothing to blend with */
    CHECK(offer_at(made(CHUNK_MOVING, 2, 18, 14), 20, 2000) == CHUNK_TAKEN);
    const float share[] = {0.25f, 0.5f, 0.75f};
    for (int i = 0; i < 3; i++) {
        float old = (float)(1010 + i), new = (float)(2002 + i);
        schedule_action action = schedule_due(&schedules, 20 + i);
        CHECK(action.action[0] == old + share[i] * (new - old) && action.sequence == 2 && action.index == 2 + i);
    }
    CHECK(schedule_due(&schedules, 23).action[0] == 2005.0f);
    CHECK(offer_at(made(CHUNK_MOVING, 3, 29, 14), 30, 2000) == CHUNK_TAKEN);
    CHECK(offer_at(made(CHUNK_MOVING, 4, 30, 14), 30, 2000) ==
          CHUNK_TAKEN); /* two in one tick: the last before it is blended */
    CHECK(schedule_due(&schedules, 30).action[0] == 3001.0f + 0.25f * (4000.0f - 3001.0f));
    begin(8);
    for (int64_t k = 0; k <= 30; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 10, 4), 10, 2000) == CHUNK_TAKEN);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 12, 9), 12, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 13).action[0] != 2001.0f &&
          schedule_due(&schedules, 14).action[0] == 2002.0f); /* the old ended */
    begin(0);
    for (int64_t k = 0; k <= 30; k++)
        read_joints(k, 2000);
    CHECK(offer_at(made(CHUNK_MOVING, 1, 10, 20), 10, 2000) == CHUNK_TAKEN);
    CHECK(offer_at(made(CHUNK_MOVING, 2, 12, 20), 12, 2000) == CHUNK_TAKEN);
    CHECK(schedule_due(&schedules, 12).action[0] == 2000.0f);
    return 0;
}

/* Late, duplicate, reordered and stale chunks in any order: an action is due at its own time or not at all, on the line
 * between it and the next, and it is the newest taken chunk's. */
static int interleaved(long n, int64_t action_ns)
{
    begin_with(action_ns, 0);
    long taken = 0, due = 0, tick = 0;
    int64_t newest = -1, newest_tick = 0, newest_n = 0;
    double actions_a_tick = (double)T / (double)action_ns;
    for (long k = 0; k < n; tick++) {
        read_joints(tick, 2000);
        for (int offers = draw(4); offers > 0; offers--, k++) {
            int64_t sequence = newest + draw(5) - 2, observed = tick - draw(70) + 2;
            uint32_t actions = (uint32_t)(1 + draw(50));
            chunk *chunk = made(CHUNK_MOVING, sequence, observed, actions);
            int stale = draw(10) == 0;
            chunk->session += (uint64_t)stale;
            /* Its last action's time came not a whole tick ago. */
            bool comes = (tick - observed) * T - (actions - 1) * action_ns < T;
            bool good = !stale && sequence > newest && observed >= 0 && observed <= tick &&
                        tick - observed < LIMIT_TICKS && comes;
            CHECK((offer_at(chunk, tick, 2000) == CHUNK_TAKEN) == good);
            if (good) {
                newest = sequence;
                newest_tick = observed;
                newest_n = actions;
                taken++;
            }
        }
        schedule_action action = schedule_due(&schedules, tick);
        CHECK(action.due == (newest >= 0 && (tick - newest_tick) * T - (newest_n - 1) * action_ns < T));
        if (action.due) {
            double place = (double)(tick - newest_tick) * actions_a_tick;
            place = place < (double)(newest_n - 1) ? place : (double)(newest_n - 1);
            double first = 1000.0 * (double)(newest % 1000), off = (double)action.action[draw(JOINTS)] - first - place;
            CHECK(action.sequence == newest && action.index <= place + 1e-6 && action.index > place - 1 - 1e-6);
            CHECK(off < 0.1 && off > -0.1 && (action_ns != T || off == 0));
            due++;
        }
    }
    printf("%ld chunks offered, %ld taken, %ld actions due\n", n, taken, due);
    return taken < n / 20 || due == 0;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? atol(argv[1]) : 100000;
    return moving() || refusals() || rest() || rates() || corners() || blending() || interleaved(n, T) ||
           interleaved(n, 3 * T) || interleaved(n, T / 2) || interleaved(n, T * 9 / 5);
}
