/* SPDX-License-Identifier: Apache-2.0 */
/* What control tells of itself: one seqlocked value in `control.state`. */
#pragma once

#include "pilot.h"
#include "shared.h"

enum { STATUS_PATH_BYTES = 256 };

/* Padded to words by hand where needed; times are CLOCK_MONOTONIC nanoseconds. */
typedef struct {
    uint64_t session;
    uint64_t pid;
    int64_t joints;      /* so many values has each array here */
    int64_t tick;
    int64_t tick_ns;     /* when the tick started */
    int64_t period_ns;
    int64_t reading_tick; /* tick of the newest reading, -1: none yet */
    int64_t reading_ns;
    int32_t present[ARM_JOINTS_MAX];  /* counts */
    float positions[ARM_JOINTS_MAX];  /* joint units */
    float velocities[ARM_JOINTS_MAX]; /* joint units/s */
    int32_t goals[ARM_JOINTS_MAX];    /* counts */
    int32_t load[ARM_JOINTS_MAX];     /* servo units */
    int32_t state, reason, joint, latched, shadow, torque, rest_ticks, fifo, locked;
    int32_t verdict, verdict_joint;
    int64_t goal_moved_tick;      /* last tick whose goal differed from the one before */
    int64_t action_ns;            /* from one action of a chunk to the next */
    int64_t action_sequence, action_index; /* what was due, -1: nothing */
    int64_t plan_tick;            /* at which action 0 of the plan in force is due */
    int64_t actions_left;         /* of the plan in force after this tick */
    int64_t patience_ns;
    int64_t age_ns;               /* of the observation the plan came from, -1: no plan */
    uint64_t ticks, missed, moving_ticks, lost_reads;
    uint64_t chunk_verdicts[CHUNK_VERDICTS];
    uint64_t guard_verdicts[GUARD_VERDICTS];
    uint64_t overwritten;
    uint64_t minor_faults, major_faults; /* of the loop's thread since its first tick */
    int64_t late_ns, late_max_ns; /* start of this tick after its time, and the most so far */
    int64_t io_ns, io_max_ns;     /* bus time of this tick, and the most so far */
    int64_t work_max_ns;
    int32_t error[ARM_JOINTS_MAX];       /* bits of the hardware error register */
    int32_t temperature[ARM_JOINTS_MAX]; /* degrees Celsius, 0: not read yet */
    int32_t voltage[ARM_JOINTS_MAX];     /* 0.1 V, 0: not read yet */
    int32_t warm_joint;              /* a servo near its temperature limit, -1: none */
    int32_t unattended;              /* the supervisor's heartbeat is missing */
    int32_t unguarded;               /* the servos have no watchdog, and who stands in for it is gone */
    /* The servo that the last lost reading or torque switch failed at, -1: not known; a register, where it was a
     * setting. */
    int32_t trouble_joint, trouble_register, trouble_wanted, trouble_found;
    uint64_t health_reads;
    uint64_t writer;                 /* of the ring's chunks */
    uint8_t digest[DIGEST_BYTES];
    char arm[ARM_NAME_BYTES];
    char names[ARM_JOINTS_MAX][ARM_NAME_BYTES]; /* of the joints */
    char record[STATUS_PATH_BYTES];
} status;

typedef struct {
    uint64_t magic;
    uint64_t bytes;
    shared_slot slot;
    status value;
} status_file;

/* The writer makes the file; a reader gets EINVAL for a file of another build. */
int status_open(shared_file *file, const char *path, bool writer);
void status_publish(status_file *file, const status *value);
/* Tries until the value is whole; false when the writer died while writing. */
bool status_read(const status_file *file, status *out);

const char *status_state_name(int32_t state);
const char *status_reason_name(int32_t reason);
const char *status_verdict_name(int32_t verdict);
const char *status_chunk_name(int32_t verdict);
