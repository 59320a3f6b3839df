/* SPDX-License-Identifier: Apache-2.0 */
/* The flight record: a mapped ring of cells of fixed size, each with a CRC.
 *
 * A tick is one cell: every input of the decision and what came of it. A chunk
 * that was taken is a head and its actions, ten of six joints a cell, before the
 * cell of its tick. Cells of an arm with more joints are twice as large. Written to the page cache at once, so it
 * survives the death of the process (not of the machine). With the configuration in the header the goals can be
 * computed again, byte for byte.
 *
 * A header of version 5 until commit 88b8df7 ends before the turns of parking: all joints had the first.
 * Older versions are read too (record_old.c), and replayed with the guard that they
 * name. Version 4 (until commit 4733e22) is of six joints. Version 3 (until commit 666d6ba) is of a guard in whole
 * counts and of one action a tick. Version 2 (until commit 35ebfe7) made its decisions by other rules as well: its
 * goals are computed from the actions and readings that it holds.
 */
#pragma once

#include "pilot.h"
#include "shared.h"

enum {
    RECORD_SMALL = 256, RECORD_LARGE = 512, /* bytes of a cell: up to six joints, and more */
    RECORD_HEAD = 16,
    RECORD_PAYLOAD = RECORD_LARGE - RECORD_HEAD,
    RECORD_HEADER = 4096,
    RECORD_OLD_VERSION = 4, /* the last that record_old.c reads */
};

typedef enum { RECORD_TICK = 1, RECORD_CHUNK, RECORD_ACTIONS } record_kind;

typedef struct {
    uint64_t index; /* counts up from 0 */
    uint32_t kind;
    uint32_t crc; /* of the cell with this field zero */
    uint8_t payload[RECORD_PAYLOAD]; /* of a small cell: what fits */
} record_cell;

/* In a cell each array has as many values as the arm has joints. */
typedef struct {
    int64_t tick, now_ns, reading_ns, patience_ns, dropped_through;
    int64_t action_sequence;
    uint8_t read_result, command, answer, torque;
    uint8_t watchdog, absent, unplugged, unsent, torque_failed, malformed, plan_then_move;
    uint8_t state, reason, latched, due, write, clear_watchdog, done, verdict;
    int8_t joint, verdict_joint;
    int32_t action_index;
    int32_t late_ns, read_ns, write_ns, work_ns; /* saturated at 2 s */
    /* From version 3 on: */
    uint8_t setting_refused, unattended, damaged, unguarded; /* unguarded: 0 in older records */
    uint8_t finding;
    int8_t finding_joint, trouble_joint;
    uint64_t writer;
    /* From version 5 on: */
    uint32_t reboot, reserved;
    int32_t position[ARM_JOINTS_MAX], velocity[ARM_JOINTS_MAX], goals[ARM_JOINTS_MAX];
    float action[ARM_JOINTS_MAX]; /* joint units */
    int16_t load[ARM_JOINTS_MAX];
    uint8_t alert[ARM_JOINTS_MAX], verdicts[ARM_JOINTS_MAX];
} record_tick;

#define RECORD_CHUNK_FIELDS(X)                                                                                         \
    X(kind) X(n) X(session) X(observation_sequence) X(observation_tick) X(observation_ns)

typedef struct {
    int64_t tick; /* at which it was taken */
    uint32_t kind, n;
    uint64_t session;
    uint8_t digest[DIGEST_BYTES];
    int64_t observation_sequence, observation_tick, observation_ns;
} record_chunk;

typedef struct {
    uint64_t magic;
    uint64_t cells;
    uint64_t written;
    int64_t wall_minus_monotonic_ns; /* to date the ticks */
    uint64_t shadow;
    uint32_t config_bytes, config_crc;
    pilot_config config; /* of older versions: see record_old.c */
} record_header;

typedef struct {
    shared_file file;
    record_header *header;
    char *cells;
    uint64_t count; /* of cells in the file */
    size_t cell_bytes;
    int version;    /* 2 to 5 */
    pilot_config config;
} record;

/* Bytes of a record of an arm with so many joints. */
size_t record_bytes(uint64_t cells, int joints);

/* Makes a new record of `cells` cells. 0 or an errno; EEXIST: a record lies there, move it away first. */
int record_create(record *self, const char *path, uint64_t cells, const pilot_config *config, bool shadow);
/* Opens one for reading. EINVAL: not a record of this build, or its header is damaged. */
int record_open(record *self, const char *path);
void record_close(record *self);

void record_put_tick(record *self, const record_tick *tick);
void record_put_chunk(record *self, int64_t tick, const chunk *data);

/* From the decision's inputs and outputs; the timings are the caller's to fill in. */
record_tick record_tick_of(const pilot_input *input, const pilot_output *output);
pilot_input record_input_of(const record_tick *tick);

/* The tick's arrays behind each other in a cell's payload, out of there with `in`; their bytes. */
size_t record_copy_arrays(const record *self, record_tick *tick, uint8_t *payload, bool in);
/* How many rows of actions a cell holds. */
uint32_t record_rows(const record *self);
/* Where the cell `index` lies, and its CRC. */
uint32_t *record_place(const record *self, uint64_t index);
uint32_t record_crc(const record *self, const record_cell *cell);

/* The tick in a cell of kind RECORD_TICK; what its version did not know is as if it had not happened. */
record_tick record_tick_in(const record *self, const record_cell *cell);

/* A cell that is whole; false: overwritten, never written or damaged. */
bool record_get(const record *self, uint64_t index, record_cell *out);
/* The oldest index that can still be there, and one behind the newest. */
void record_range(const record *self, uint64_t *first, uint64_t *end);
/* The chunk whose head is at `index`; false when a cell of it is gone. */
bool record_get_chunk(const record *self, uint64_t index, chunk *out);

/* record_old.c: bytes of an old version's configuration, which its CRC covers (0: no such version); the configuration;
 * the tick in a cell, where what its version did not know is as if it had not happened. */
size_t record_old_config_bytes(int version);
pilot_config record_old_config(int version, const void *config);
record_tick record_old_tick(int version, const uint8_t *payload);

typedef struct {
    uint64_t ticks, chunks, damaged;
    uint64_t differing;   /* ticks whose goals or decision to write differ */
    int64_t first_tick;   /* where the replay began, -1: nothing to begin with */
    int64_t differing_at; /* first such tick, -1: none */
} record_replay_result;

/* Computes every goal again from the start of the record or its oldest arming. `scratch` is the caller's. */
record_replay_result record_replay(const record *self, pilot *scratch);
