/* SPDX-License-Identifier: Apache-2.0 */
/* The reading half of the flight record, and the replay. */
#include "record.h"
#include "record_old.h"

#include <stddef.h>
#include <string.h>

record_tick record_tick_in(const record *self, const record_cell *cell)
{
    if (self->version <= OLD_VERSION)
        return record_old_tick(self->version, cell->payload);
    record_tick tick = {0};
    size_t at = offsetof(record_tick, position);
    const record_arrays arrays = record_arrays_of(&tick);
    memcpy(&tick, cell->payload, at);
    for (size_t k = 0; k < sizeof arrays.array / sizeof arrays.array[0]; k++) {
        size_t bytes = (size_t)self->config.joints * arrays.array[k].size;
        memcpy(arrays.array[k].values, cell->payload + at, bytes);
        at += bytes;
    }
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
    memset(out, 0, sizeof *out);
    out->kind = head.kind;
    out->n = head.n;
    out->joints = joints;
    out->session = head.session;
    memcpy(out->digest, head.digest, DIGEST_BYTES);
    out->observation_sequence = head.observation_sequence;
    out->observation_tick = head.observation_tick;
    out->observation_ns = head.observation_ns;
    for (uint32_t row = 0; row < head.n; row += fit) {
        uint32_t rows = head.n - row < fit ? head.n - row : fit;
        if (!record_get(self, ++index, &cell) || cell.kind != RECORD_ACTIONS)
            return false;
        memcpy(&out->actions[row * joints], cell.payload, rows * joints * sizeof(float));
    }
    return true;
}

static bool same(const record_tick *told, const pilot_output *output)
{
    return told->write == output->write && told->state == output->state && told->torque == output->torque
           && memcmp(told->goals, output->guard.goals, sizeof told->goals) == 0;
}

/* One tick of version 2: what its guard was told. Returns whether it had been started. */
static bool guard_again(guard *guard, const record_tick *told, guard_view *view, int32_t *present, int32_t *goals)
{
    int joint;
    bool armed = told->command == COMMAND_ARM && told->answer == ANSWER_DONE && told->torque == TORQUE_ON;
    bool let_go =
        told->torque == TORQUE_OFF && (told->command == COMMAND_TORQUE_OFF || told->command == COMMAND_TORQUE_OFF_NOW);
    if (told->unsent)
        guard_unsent(guard);
    if (told->read_result == ARM_OK || told->read_result == ARM_ALERT) {
        memcpy(present, told->position, sizeof told->position);
        view->present = present;
        view->present_ns = told->reading_ns;
    }
    view->now_ns = told->now_ns;
    if (armed)
        guard_start(guard, present, GUARD_START_TOLERANCE, &joint);
    if (told->clear_watchdog)
        guard_start(guard, present, GUARD_SAG, &joint);
    if (let_go || !guard->started) {
        guard->started = false;
        return false;
    }
    bool steps = told->due && told->torque == TORQUE_KEEP;
    guard_result result = steps ? guard_step(guard, told->action, guard->count, view) : guard_brake(guard);
    memcpy(goals, result.goals, sizeof result.goals);
    guard->started = told->torque != TORQUE_OFF;
    return true;
}

static record_replay_result replay_v2(const record *self, guard *scratch)
{
    record_replay_result result = {.first_tick = -1, .differing_at = -1};
    uint64_t first, end;
    int joint;
    guard_view view = {0};
    int32_t present[ARM_JOINTS_MAX] = {0}, goals[ARM_JOINTS_MAX] = {0};
    bool begun = false;
    record_range(self, &first, &end);
    guard_version version = (guard_version)self->config.guard_version;
    if (guard_configure(scratch, self->config.limits, self->config.joints, self->config.period_ns, version, &joint) !=
        GUARD_CONFIG_OK)
        return result;
    for (uint64_t index = first; index < end; index++) {
        record_cell cell;
        if (!record_get(self, index, &cell)) {
            result.damaged++;
            begun = false; /* a tick may be missing: go on from the next arming */
            continue;
        }
        result.chunks += begun && cell.kind == RECORD_CHUNK;
        if (cell.kind != RECORD_TICK)
            continue;
        record_tick told = record_tick_in(self, &cell);
        begun = begun || told.tick == 0 || (told.answer == ANSWER_DONE && told.torque == TORQUE_ON);
        if (!begun)
            continue;
        if (result.first_tick < 0)
            result.first_tick = told.tick;
        result.ticks++;
        bool started = guard_again(scratch, &told, &view, present, goals);
        if (told.write && (!started || memcmp(told.goals, goals, sizeof goals) != 0)) {
            result.differing++;
            if (result.differing_at < 0)
                result.differing_at = told.tick;
        }
    }
    return result;
}

record_replay_result record_replay(const record *self, pilot *scratch)
{
    if (self->version == 2)
        return replay_v2(self, &scratch->guard);
    record_replay_result result = {.first_tick = -1, .differing_at = -1};
    uint64_t first, end, chunks_from;
    int joint;
    bool begun = false;
    record_range(self, &first, &end);
    if (pilot_init(scratch, &self->config, &joint) != GUARD_CONFIG_OK)
        return result;
    chunks_from = first;
    for (uint64_t index = first; index < end; index++) {
        record_cell cell;
        if (!record_get(self, index, &cell)) {
            result.damaged++;
            continue;
        }
        if (cell.kind != RECORD_TICK)
            continue;
        record_tick told = record_tick_in(self, &cell);
        /* Arming with fresh torque forgets all that was before it. */
        begun = begun || told.tick == 0 || (told.answer == ANSWER_DONE && told.torque == TORQUE_ON);
        if (begun) {
            pilot_input input = record_input_of(&told);
            pilot_output output;
            if (result.first_tick < 0)
                result.first_tick = told.tick;
            pilot_begin(scratch, &input, &output);
            for (uint64_t at = chunks_from; at < index; at++) {
                chunk data;
                record_cell before;
                if (record_get(self, at, &before) && before.kind == RECORD_CHUNK && record_get_chunk(self, at, &data)) {
                    pilot_offer(scratch, &input, &data);
                    result.chunks++;
                }
            }
            pilot_end(scratch, &input, &output);
            result.ticks++;
            if (!same(&told, &output)) {
                result.differing++;
                if (result.differing_at < 0)
                    result.differing_at = told.tick;
            }
        }
        chunks_from = index + 1;
    }
    return result;
}
