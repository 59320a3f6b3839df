/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 5, SMALL_JOINTS = 6 };
static const uint64_t magic_v0 = 0x30444345525f4c56; /* "VL_RECD0", the last byte counts up */

enum { TICK_HEAD = offsetof(record_tick, position), JOINT_BYTES = 4 * 4 + 2 + 1 + 1 };

_Static_assert(offsetof(pilot_config, park_turn) == 2040, "as it was written before there were turns");
_Static_assert(sizeof(record_cell) == RECORD_LARGE && offsetof(record_cell, payload) == RECORD_HEAD,
               "a cell is 512 bytes");
_Static_assert(RECORD_HEAD + TICK_HEAD + SMALL_JOINTS * JOINT_BYTES <= RECORD_SMALL, "six joints fit a small cell");
_Static_assert(TICK_HEAD + ARM_JOINTS_MAX * JOINT_BYTES <= RECORD_PAYLOAD, "every arm fits a large one");
_Static_assert(RECORD_HEAD + sizeof(record_chunk) <= RECORD_SMALL, "fits a cell");
_Static_assert(sizeof(record_header) <= RECORD_HEADER, "fits the header");

static size_t cell_bytes_of(int joints)
{
    return joints <= SMALL_JOINTS ? RECORD_SMALL : RECORD_LARGE;
}

size_t record_bytes(uint64_t cells, int joints)
{
    return RECORD_HEADER + cells * cell_bytes_of(joints);
}

static void attach(record *self)
{
    self->header = self->file.memory;
    self->cells = (char *)self->file.memory + RECORD_HEADER;
}

uint32_t *record_place(const record *self, uint64_t index)
{
    return (uint32_t *)(self->cells + index % self->count * self->cell_bytes);
}

uint32_t record_crc(const record *self, const record_cell *cell)
{
    record_cell copy = *cell;
    copy.crc = 0;
    return shared_crc32(&copy, self->cell_bytes);
}

int record_create(record *self, const char *path, uint64_t cells, const pilot_config *config, bool shadow)
{
    if (access(path, F_OK) == 0)
        return EEXIST;
    int failure = shared_open(&self->file, path, record_bytes(cells, config->joints), true);
    if (failure != 0)
        return failure;
    attach(self);
    shared_prefault(self->file.memory, self->file.bytes);
    struct timespec wall, monotonic;
    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    self->count = cells;
    self->cell_bytes = cell_bytes_of(config->joints);
    self->config = *config;
    self->header->cells = cells;
    self->header->shadow = shadow;
    self->header->wall_minus_monotonic_ns =
        (wall.tv_sec - monotonic.tv_sec) * 1000000000LL + (wall.tv_nsec - monotonic.tv_nsec);
    memcpy(&self->header->config, config, sizeof *config); /* with its padding, which the CRC sees too */
    self->header->config_bytes = sizeof *config;
    self->header->config_crc = shared_crc32(&self->header->config, sizeof *config);
    shared_store(&self->header->magic, magic_v0 + ((uint64_t)VERSION << 56));
    return 0;
}

int record_open(record *self, const char *path)
{
    int failure = shared_open_any(&self->file, path);
    if (failure != 0)
        return failure;
    attach(self);
    const record_header *header = self->header;
    bool whole = self->file.bytes >= RECORD_HEADER && (header->magic - magic_v0) << 8 == 0;
    self->version = whole ? (int)((header->magic - magic_v0) >> 56) : 0;
    bool older = header->config_bytes == offsetof(pilot_config, park_turn); /* this version, before there were turns */
    size_t now_bytes = older ? offsetof(pilot_config, park_turn) : sizeof(pilot_config);
    size_t config_bytes = self->version == VERSION ? now_bytes : record_old_config_bytes(self->version);
    whole = config_bytes > 0 && header->config_bytes == config_bytes &&
            header->config_crc == shared_crc32(&header->config, config_bytes);
    if (whole)
        self->config = self->version == VERSION ? header->config : record_old_config(self->version, &header->config);
    if (whole && self->version == VERSION && older) {
        self->config.buses = 0;
        memset(self->config.park_turn, 0, sizeof self->config.park_turn);
    }
    self->cell_bytes = cell_bytes_of(self->config.joints);
    whole = whole && self->config.joints >= 1 && self->config.joints <= ARM_JOINTS_MAX;
    if (!whole || header->cells == 0 || header->cells > (self->file.bytes - RECORD_HEADER) / self->cell_bytes) {
        shared_close(&self->file);
        return EINVAL;
    }
    self->count = header->cells;
    return 0;
}

size_t record_copy_arrays(const record *self, record_tick *tick, uint8_t *payload, bool in)
{
    const struct {
        void *values;
        size_t size; /* of one */
    } arrays[] = {{tick->position, 4}, {tick->velocity, 4}, {tick->goals, 4},   {tick->action, 4},
                  {tick->load, 2},     {tick->alert, 1},    {tick->verdicts, 1}};
    size_t at = 0;
    for (size_t k = 0; k < sizeof arrays / sizeof arrays[0]; k++) {
        size_t bytes = (size_t)self->config.joints * arrays[k].size;
        memcpy(in ? arrays[k].values : payload + at, in ? payload + at : arrays[k].values, bytes);
        at += bytes;
    }
    return at;
}

uint32_t record_rows(const record *self)
{
    return (uint32_t)((self->cell_bytes - RECORD_HEAD) / ((size_t)self->config.joints * sizeof(float)));
}

void record_close(record *self)
{
    shared_close(&self->file);
}

static void put(record *self, record_kind kind, const void *payload, size_t bytes)
{
    record_cell cell = {.index = self->header->written, .kind = kind};
    memcpy(cell.payload, payload, bytes);
    cell.crc = record_crc(self, &cell);
    shared_put(record_place(self, cell.index), &cell, self->cell_bytes / 4);
    shared_store(&self->header->written, cell.index + 1);
}

void record_put_tick(record *self, const record_tick *tick)
{
    uint8_t payload[RECORD_PAYLOAD];
    memcpy(payload, tick, TICK_HEAD);
    size_t bytes = TICK_HEAD + record_copy_arrays(self, (record_tick *)tick, payload + TICK_HEAD, false);
    put(self, RECORD_TICK, payload, bytes);
}

#define FROM_CHUNK(name) .name = data->name,
void record_put_chunk(record *self, int64_t tick, const chunk *data)
{
    record_chunk head = {.tick = tick, RECORD_CHUNK_FIELDS(FROM_CHUNK)};
    memcpy(head.digest, data->digest, DIGEST_BYTES);
    put(self, RECORD_CHUNK, &head, sizeof head);
    uint32_t fit = record_rows(self);
    for (uint32_t row = 0; row < data->n; row += fit) {
        uint32_t rows = data->n - row < fit ? data->n - row : fit;
        put(self, RECORD_ACTIONS, &data->actions[row * data->joints], rows * data->joints * sizeof(float));
    }
}

/* What a tick's cell keeps of the decision's inputs and of what came of it under the same name. */
#define INPUTS(X)                                                                                                      \
    X(tick) X(now_ns) X(read_result) X(watchdog) X(absent) X(unplugged) X(unsent) X(torque_failed) X(setting_refused)  \
    X(trouble_joint) X(unattended) X(unguarded) X(damaged) X(writer) X(command) X(malformed) X(patience_ns)            \
    X(plan_then_move) X(dropped_through)
#define OUTPUTS(X)                                                                                                     \
    X(answer) X(torque) X(state) X(reason) X(joint) X(latched) X(write) X(clear_watchdog) X(reboot) X(done)
#define ARRAYS(X) X(position) X(velocity) X(load) X(alert)
#define FROM_INPUT(name) .name = input->name,
#define FROM_OUTPUT(name) .name = output->name,
#define FROM_TICK(name) .name = tick->name,
#define ARRAY_OF_READING(name) memcpy(tick.name, input->reading.name, sizeof tick.name);
#define ARRAY_OF_TICK(name) memcpy(input.reading.name, tick->name, sizeof tick->name);

record_tick record_tick_of(const pilot_input *input, const pilot_output *output)
{
    record_tick tick = {
        INPUTS(FROM_INPUT)
        .reading_ns = input->reading.time_ns,
        .finding = input->finding.kind,
        .finding_joint = input->finding.joint,
        .action_sequence = output->action.sequence,
        .action_index = output->action.index,
        .due = output->action.due,
        OUTPUTS(FROM_OUTPUT)
        .verdict = output->guard.verdict,
        .verdict_joint = output->guard.joint,
    };
    ARRAYS(ARRAY_OF_READING)
    memcpy(tick.goals, output->guard.goals, sizeof tick.goals);
    memcpy(tick.verdicts, output->guard.joints, sizeof tick.verdicts);
    memcpy(tick.action, output->action.action, sizeof tick.action);
    return tick;
}

pilot_input record_input_of(const record_tick *tick)
{
    pilot_input input = {
        INPUTS(FROM_TICK)
        .reading.time_ns = tick->reading_ns,
        .finding = {.kind = tick->finding, .joint = tick->finding_joint},
    };
    ARRAYS(ARRAY_OF_TICK)
    return input;
}
