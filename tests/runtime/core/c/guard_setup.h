/* SPDX-License-Identifier: Apache-2.0 */
/* What the two tests of the guard share: a check, seeded draws, and the usual limits at 30 Hz. */
#pragma once

#include "check.h"
#include "guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOW = 1000, HIGH = 3000, MS = 1000000 };
static const int64_t period_30hz = 33333333;

static uint64_t seed = 1;
static inline int draw(int n) /* 0..n-1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (uint64_t)n);
}

static inline guard_limits usual(void)
{
    return (guard_limits){.position_min = LOW,
                          .position_max = HIGH,
                          .velocity = 2000,
                          .acceleration = 30000,
                          .jerk = 1e6,
                          .step = 120,
                          .tracking = 4000,
                          .scale = 1.0,
                          .offset = 0.0};
}

static inline void fill(guard_limits limits[JOINTS], guard_limits one)
{
    for (int i = 0; i < JOINTS; i++)
        limits[i] = one;
}
