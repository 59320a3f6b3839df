/* SPDX-License-Identifier: Apache-2.0 */
#include "health.h"

#include <stddef.h>

/* True at the second time in a row. */
static bool strike(uint8_t *strikes, bool wrong)
{
    *strikes = wrong ? (uint8_t)(*strikes < HEALTH_STRIKES ? *strikes + 1 : HEALTH_STRIKES) : 0;
    return *strikes == HEALTH_STRIKES;
}

static finding_kind supply(health_watch *self, const arm_health *health, const health_limits *limits, int joint)
{
    bool wrong = limits->voltage_max > 0
                 && (health->voltage[joint] < limits->voltage_min || health->voltage[joint] > limits->voltage_max);
    bool starved = strike(&self->starved[joint], wrong);
    int32_t left = limits->temperature - health->temperature[joint];
    if (limits->temperature > 0 && left <= HEALTH_HOT_MARGIN)
        return FINDING_HOT;
    if (starved)
        return FINDING_VOLTAGE;
    return limits->temperature > 0 && left <= HEALTH_WARM_MARGIN ? FINDING_WARM : FINDING_NONE;
}

static finding_kind judge(health_watch *self, const arm_health *health, const health_limits *limits,
                          const int32_t *sent, int joint)
{
    switch (health->part) {
    case HEALTH_TORQUE:
        return health->torque[joint] ? FINDING_NONE : health->error[joint] ? FINDING_ALERT : FINDING_NO_TORQUE;
    case HEALTH_GOALS:
        return sent != NULL && strike(&self->deaf[joint], health->goals[joint] != sent[joint]) ? FINDING_DEAF
                                                                                               : FINDING_NONE;
    case HEALTH_WATCHDOG:
        return health->stopped[joint] == 2 ? FINDING_NO_TORQUE
               : health->stopped[joint]    ? FINDING_STOPPED
                                           : FINDING_NONE;
    case HEALTH_SUPPLY:
        return supply(self, health, limits, joint);
    default:
        return FINDING_NONE;
    }
}

health_finding health_judge(health_watch *self, const arm_health *health, const health_limits *limits, int joints,
                            const int32_t *sent, uint32_t without)
{
    health_finding worst = {.kind = FINDING_NONE, .joint = -1};
    for (int i = 0; i < joints; i++) {
        finding_kind kind = judge(self, health, &limits[i], sent, i);
        bool known = without >> i & 1 && health->part != HEALTH_SUPPLY;
        if (kind == FINDING_NONE || known)
            continue;
        bool worse = worst.kind == FINDING_NONE || (health->part == HEALTH_SUPPLY && kind > worst.kind)
                     || (worst.kind == FINDING_STOPPED && kind == FINDING_NO_TORQUE);
        if (worse)
            worst = (health_finding){.kind = kind, .joint = i};
    }
    return worst;
}
