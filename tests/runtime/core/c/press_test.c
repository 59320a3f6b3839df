/* SPDX-License-Identifier: Apache-2.0 */
/* Pressing, health and heartbeat on their own. */
#include "check.h"
#include "beat.h"
#include "health.h"
#include "press.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MS = 1000000, GRAVITY = 40, STALL = 60 };

static press pressing(void)
{
    press self;
    press_limits limits[JOINTS];
    for (int i = 0; i < JOINTS; i++)
        limits[i] = (press_limits){.gravity = GRAVITY, .stall = i == 5 ? 0 : STALL};
    press_init(&self, limits, JOINTS, 120 * MS);
    return self;
}

static int stall(void)
{
    press self = pressing();
    int32_t goals[JOINTS] = {0}, present[JOINTS] = {0};
    goals[5] = 900; /* grips */
    goals[2] = STALL;
    for (int64_t t = 0; t < 500; t += 10)
        CHECK(press_stalled(&self, goals, present, 0, t * MS) == -1); /* at the limit, not beyond */
    goals[2] = -STALL - 1;
    for (int64_t t = 500; t < 620; t += 10)
        CHECK(press_stalled(&self, goals, present, 0, t * MS) == -1);
    CHECK(press_stalled(&self, goals, present, 0, 620 * MS) == 2);
    CHECK(press_stalled(&self, goals, present, 1 << 2, 630 * MS) == -1); /* it has no torque */
    for (int64_t t = 640; t < 2000; t += 100) { /* it moves on: slow, but no obstacle */
        present[2] -= PRESS_MOVED_COUNTS + 1;
        goals[2] = present[2] - 100;
        CHECK(press_stalled(&self, goals, present, 0, t * MS) == -1);
    }
    return 0;
}

static int lead_back(void)
{
    press self = pressing();
    int32_t goals[JOINTS] = {0, 100, -100, GRAVITY, 100, 0}, present[JOINTS] = {0}, wish[JOINTS];
    present[4] = 7;
    press_stalled(&self, goals, present, 0, 0);
    CHECK(!press_lead_back(&self, goals, present, 0, 10 * MS, wish)); /* they do not stand yet */
    present[4] = 0;
    press_stalled(&self, goals, present, 0, 50 * MS);
    CHECK(press_lead_back(&self, goals, present, 1 << 2, 65 * MS, wish)); /* all but 4, which moved last */
    const int32_t first[JOINTS] = {0, GRAVITY, -100, GRAVITY, 100, 0};
    CHECK(memcmp(wish, first, sizeof first) == 0);
    CHECK(press_lead_back(&self, goals, present, 1 << 2, 120 * MS, wish) && wish[4] == GRAVITY);
    memcpy(goals, wish, sizeof wish);
    for (int i = 0; i < JOINTS; i++)
        present[i] -= 30; /* it sags: not led back a second time */
    press_stalled(&self, goals, present, 1 << 2, 130 * MS);
    CHECK(!press_lead_back(&self, goals, present, 1 << 2, 500 * MS, wish));
    press_release(&self);
    CHECK(press_lead_back(&self, goals, present, 1 << 2, 600 * MS, wish) && wish[1] == present[1] + GRAVITY);
    return 0;
}

static int health(void)
{
    health_watch watch = {0};
    health_limits limits[JOINTS];
    for (int i = 0; i < JOINTS; i++)
        limits[i] = (health_limits){.temperature = 70, .voltage_min = 37, .voltage_max = 60};
    int32_t sent[JOINTS] = {1, 2, 3, 4, 5, 6};
    arm_health now = {.part = HEALTH_TORQUE};
    memset(now.torque, 1, sizeof now.torque);
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_NONE);
    now.torque[4] = 0;
    health_finding found = health_judge(&watch, &now, limits, JOINTS, sent, 0);
    CHECK(found.kind == FINDING_NO_TORQUE && found.joint == 4);
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 1 << 4).kind == FINDING_NONE);
    now.error[4] = 0x20;
    found = health_judge(&watch, &now, limits, JOINTS, sent, 0);
    CHECK(found.kind == FINDING_ALERT && found.joint == 4);
    now.part = HEALTH_WATCHDOG;
    now.stopped[1] = 1;
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_STOPPED);
    now.stopped[3] = 2;
    found = health_judge(&watch, &now, limits, JOINTS, sent, 0);
    CHECK(found.kind == FINDING_NO_TORQUE && found.joint == 3); /* the worse of two */
    now.part = HEALTH_GOALS;
    memcpy(now.goals, sent, sizeof sent);
    now.goals[0] = 99;
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_NONE); /* one write may be lost */
    found = health_judge(&watch, &now, limits, JOINTS, sent, 0);
    CHECK(found.kind == FINDING_DEAF && found.joint == 0);
    now.goals[0] = 1;
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_NONE);
    now.goals[0] = 99;
    CHECK(health_judge(&watch, &now, limits, JOINTS, NULL, 0).kind == FINDING_NONE);
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_NONE);
    now.part = HEALTH_SUPPLY;
    for (int i = 0; i < JOINTS; i++)
        now.voltage[i] = 50;
    static const struct {
        int degrees;
        finding_kind kind;
    } heat[] = {{59, FINDING_NONE}, {60, FINDING_WARM}, {66, FINDING_WARM}, {67, FINDING_HOT}, {79, FINDING_HOT}};
    for (size_t k = 0; k < sizeof heat / sizeof heat[0]; k++) {
        now.temperature[2] = (uint8_t)heat[k].degrees;
        CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == heat[k].kind);
    }
    now.temperature[2] = 30;
    now.voltage[5] = 36;
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_NONE);
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_VOLTAGE);
    now.temperature[5] = 30;
    now.temperature[0] = 62; /* warm is less than hungry */
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_VOLTAGE);
    now.temperature[0] = 70;
    found = health_judge(&watch, &now, limits, JOINTS, sent, 0);
    CHECK(found.kind == FINDING_HOT && found.joint == 0);
    now.part = HEALTH_NONE;
    CHECK(health_judge(&watch, &now, limits, JOINTS, sent, 0).kind == FINDING_NONE);
    return 0;
}

static int heartbeat(void)
{
    beat_file file = {0};
    CHECK(beat_missing(&file, 600 * (int64_t)MS)); /* none yet */
    beat_write(&file, 1000 * (int64_t)MS);
    CHECK(!beat_missing(&file, 1500 * (int64_t)MS));
    CHECK(beat_missing(&file, 1501 * (int64_t)MS));
    CHECK(beat_missing(&file, 400 * (int64_t)MS)); /* one from the future is none */
    return 0;
}

int main(void)
{
    return stall() || lead_back() || health() || heartbeat();
}
