/* SPDX-License-Identifier: Apache-2.0 */
/* A chunk of actions as it crosses from inference to control.
 *
 * Values are in joint units (the policy's); times are CLOCK_MONOTONIC
 * nanoseconds; ticks count the control loop's periods since its start.
 */
#pragma once

#include <stdint.h>

enum {
    CHUNK_ACTIONS_MAX = 256,
    CHUNK_JOINTS_MAX = 17,   /* more than an arm has, so that a wrong shape can be told from damage */
    CHUNK_VALUES_MAX = 2048, /* actions times joints */
    DIGEST_BYTES = 32,
};

typedef enum { CHUNK_MOVING = 0, CHUNK_REST = 1 } chunk_kind;

/* Laid out without padding: it is copied in words and hashed as bytes. */
typedef struct {
    uint32_t kind;
    uint32_t n;      /* actions */
    uint32_t joints; /* values in one action */
    uint32_t flags;  /* zero */
    uint64_t session;
    uint8_t digest[DIGEST_BYTES]; /* sha256 of the bundle's manifest */
    int64_t observation_sequence;
    int64_t observation_tick;
    int64_t observation_ns;
    float actions[CHUNK_VALUES_MAX]; /* row i at i * joints */
} chunk;

/* Why a chunk was not taken; counted by reason. */
typedef enum {
    CHUNK_TAKEN,
    CHUNK_TORN,       /* the slot was rewritten while read, or its CRC is wrong */
    CHUNK_SHAPE,      /* no action, too many, or not one value for each joint */
    CHUNK_NOT_FINITE, /* a value that is no joint position */
    CHUNK_SESSION,    /* made for another run of the control process */
    CHUNK_DIGEST,     /* made by another bundle */
    CHUNK_ORDER,      /* not newer than one already taken, or observed before arming */
    CHUNK_FUTURE,     /* its observation tick has not happened */
    CHUNK_AGE,        /* its observation is older than the limit */
    CHUNK_LATE,       /* moving: every action's tick has passed */
    CHUNK_MOVED,      /* rest: the arm or its goal moved since the observation */
    CHUNK_NOT_ARMED,  /* disarmed, latched, parking or in fault */
    CHUNK_VERDICTS,
} chunk_verdict;

/* Damage that shows a broken writer: the running plan is dropped as well. */
static inline int chunk_is_malformed(chunk_verdict verdict)
{
    return verdict == CHUNK_SHAPE || verdict == CHUNK_NOT_FINITE;
}
