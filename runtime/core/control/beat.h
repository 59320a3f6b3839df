/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's heartbeat: a mapped file with one writer, who started the run. Control holds when it is silent. */
#pragma once

#include "shared.h"

#define BEAT_SILENCE_NS 500000000LL

typedef struct {
    uint64_t magic, bytes;
    uint64_t beat_ns; /* CLOCK_MONOTONIC of the last beat, 0: none yet */
} beat_file;

/* The writer makes the file. 0 or an errno; EINVAL: a file of another build. */
int beat_open(shared_file *file, const char *path, bool writer);
void beat_write(beat_file *file, int64_t now_ns);
/* No beat for half a second, or none at all. */
bool beat_missing(const beat_file *file, int64_t now_ns);
