/* SPDX-License-Identifier: Apache-2.0 */
/* The reading half of the flight record, and the replay. */
#include "record.h"

#include <stddef.h>
#include <string.h>

record_tick record_tick_in(const record *self, const record_cell *cell)
{
    if (self->version <= RECORD_OLD_VERSION)
        return record_old_tick(self->version, cell->payload);
    record_tick tick = {0};
    const size_t head = offsetof(record_tick, position);
    memcpy(&tick, cell->payload, head);
    (void)record_copy_arrays(self, &tick, (uint8_t *)cell->payload + head, true);
    return tick;
}

void record_range(const record *self, uint64_t *first, uint64_t *end)
{
    *end = shared_load(&self->header->written);
    *first = *end > self->count ? *end - self->count : 0;
}

bool record_get(const record *self, uint64_t index, record_cell *out)
{
    shared_get(out, record_place(self, index), self->cell_bytes / 4);
    return out->index == index && out->crc == record_crc(self, out);
}

#define FROM_HEAD(name) .name = head.name,
bool record_get_chunk(const record *self, uint64_t index, chunk *out)
{
    record_cell cell;
    record_chunk head;
    if (!record_get(self, index, &cell) || cell.kind != RECORD_CHUNK)
        return false;
    memcpy(&head, cell.payload, sizeof head);
    uint32_t joints = (uint32_t)self->config.joints, fit = record_rows(self);
    if (head.n < 1 || head.n > CHUNK_ACTIONS_MAX || head.n * joints > CHUNK_VALUES_MAX)
        return false;
    *out = (chunk){.joints = joints, RECORD_CHUNK_FIELDS(FROM_HEAD)};
    memcpy(out->digest, head.digest, DIGEST_BYTES);
    for (uint32_t row = 0; row < head.n; row += fit) {
        uint32_t rows = head.n - row < fit ? head.n - row : fit;
        if (!record_get(self, ++index, &cell) || cell.kind != RECORD_ACTIONS)
            return false;
        memcpy(&out->actions[row * joints], cell.payload, rows * joints * sizeof(float));
    }
    return true;
}

/* One tick of version 2, whose decisions were made by other rules: its guard told what it was told. Whether the goals
 * that were sent come out of it. */
static bool guard_again(pilot *pilot, const record_tick *told)
{
    guard *guard = &pilot->guard;
    int joint;
    bool armed = told->command == COMMAND_ARM && told->answer == ANSWER_DONE && told->torque == TORQUE_ON;
    bool let_go =
        told->torque == TORQUE_OFF && (told->command == COMMAND_TORQUE_OFF || told->command == COMMAND_TORQUE_OFF_NOW);
    if (told->unsent)
        guard_unsent(guard);
    if (told->read_result == ARM_OK || told->read_result == ARM_ALERT) {
        memcpy(pilot->present, told->position, sizeof told->position);
        pilot->present_known = true;
        pilot->present_ns = told->reading_ns;
    }
    guard_view view = {pilot->present_known ? pilot->present : NULL, pilot->present_ns, told->now_ns};
    if (armed)
        guard_start(guard, pilot->present, GUARD_START_TOLERANCE, &joint);
    if (told->clear_watchdog)
        guard_start(guard, pilot->present, GUARD_SAG, &joint);
    if (let_go || !guard->started) {
        guard->started = false;
        return !told->write;
    }
    bool steps = told->due && told->torque == TORQUE_KEEP;
    guard_result result = steps ? guard_step(guard, told->action, guard->count, &view) : guard_brake(guard);
    guard->started = told->torque != TORQUE_OFF;
    return !told->write || memcmp(result.goals, told->goals, sizeof told->goals) == 0;
}

/* One tick with the chunks before its cell, from `from` on: whether the same was decided. */
static bool pilot_again(const record *self, pilot *pilot, const record_tick *told, uint64_t from, uint64_t index)
{
    pilot_input input = record_input_of(told);
    pilot_output output;
    chunk data;
    pilot_begin(pilot, &input, &output);
    for (uint64_t at = from; at < index; at++)
        if (record_get_chunk(self, at, &data))
            pilot_offer(pilot, &input, &data);
    pilot_end(pilot, &input, &output);
    return told->write == output.write && told->state == output.state && told->torque == output.torque &&
           memcmp(told->goals, output.guard.goals, sizeof told->goals) == 0;
}

record_replay_result record_replay(const record *self, pilot *scratch)
{
    record_replay_result result = {.first_tick = -1, .differing_at = -1};
    uint64_t first, end, chunks = 0;
    int joint;
    bool begun = false;
    record_range(self, &first, &end);
    if (pilot_init(scratch, &self->config, &joint) != GUARD_CONFIG_OK)
        return result;
    for (uint64_t index = first, behind = first; index < end; index++) {
        record_cell cell;
        chunk data;
        if (!record_get(self, index, &cell)) {
            result.damaged++;
            begun = begun && self->version > 2; /* a tick may be missing: go on from the next arming */
            continue;
        }
        chunks += record_get_chunk(self, index, &data);
        if (cell.kind != RECORD_TICK)
            continue;
        record_tick told = record_tick_in(self, &cell);
        /* Arming with fresh torque forgets all that was before it. */
        begun = begun || told.tick == 0 || (told.answer == ANSWER_DONE && told.torque == TORQUE_ON);
        if (begun) {
            bool same = self->version == 2 ? guard_again(scratch, &told)
                                           : pilot_again(self, scratch, &told, behind, index);
            result.first_tick = result.first_tick < 0 ? told.tick : result.first_tick;
            result.ticks++;
            result.chunks += chunks;
            result.differing += !same;
            result.differing_at = same || result.differing_at >= 0 ? result.differing_at : told.tick;
        }
        behind = index + 1;
        chunks = 0;
    }
    return result;
}
