/* SPDX-License-Identifier: Apache-2.0 */
/* What the two tests of the whole loop share: its files in a folder, and an arm whose joints lie at 2000. */
#pragma once

#include "check.h"
#include "control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const arm_trouble no_trouble = {.joint = -1};

static inline void name_files(control_config *config, const char *folder)
{
    static char ring[256], state[256], record[256];
    snprintf(ring, sizeof ring, "%s/ring", folder);
    snprintf(state, sizeof state, "%s/state", folder);
    snprintf(record, sizeof record, "%s/record", folder);
    config->ring_path = ring;
    config->state_path = state;
    config->record_path = record;
}

static inline pilot_config plain_pilot(int64_t period_ns, int64_t patience_ns)
{
    pilot_config pilot = {.schedule = {.session = 1, .joints = JOINTS},
                          .joints = JOINTS,
                          .period_ns = period_ns,
                          .action_ns = period_ns,
                          .guard_version = GUARD_VERSION,
                          .patience_min_ns = patience_ns,
                          .patience_max_ns = patience_ns,
                          .reads_latch_ns = 500000000};
    for (int i = 0; i < JOINTS; i++)
        pilot.limits[i] = (guard_limits){1000, 3000, 4000, 1e6, 1e9, 120, 400, 1, 0};
    return pilot;
}

/* A chunk of so many actions for the reading of `tick`. */
static inline chunk chunk_of(uint32_t n, int64_t sequence, int64_t tick, int64_t time_ns)
{
    return (chunk){.n = n,
                   .joints = JOINTS,
                   .session = 1,
                   .observation_sequence = sequence,
                   .observation_tick = tick,
                   .observation_ns = time_ns};
}
