/* The reading half of the flight record, and the replay. */
#include "record.h"

#include <string.h>

void record_range(const record *self, uint64_t *first, uint64_t *end)
{
    *end = shared_load(&self->header->written);
    *first = *end > self->count ? *end - self->count : 0;
}

bool record_get(const record *self, uint64_t index, record_cell *out)
{
    shared_get(out, (const uint32_t *)&self->cells[index % self->count], sizeof *out / 4);
    uint32_t crc = out->crc;
    out->crc = 0;
    bool whole = out->index == index && crc == shared_crc32(out, sizeof *out);
    out->crc = crc;
    return whole;
}

bool record_get_chunk(const record *self, uint64_t index, chunk *out)
{
    record_cell cell;
    record_chunk head;
    if (!record_get(self, index, &cell) || cell.kind != RECORD_CHUNK)
        return false;
    memcpy(&head, cell.payload, sizeof head);
    if (head.n < 1 || head.n > CHUNK_ACTIONS_MAX)
        return false;
    memset(out, 0, sizeof *out);
    out->kind = head.kind;
    out->n = head.n;
    out->joints = ARM_JOINTS;
    out->session = head.session;
    memcpy(out->digest, head.digest, DIGEST_BYTES);
    out->observation_sequence = head.observation_sequence;
    out->observation_tick = head.observation_tick;
    out->observation_ns = head.observation_ns;
    for (uint32_t row = 0; row < head.n; row += RECORD_ROWS) {
        uint32_t rows = head.n - row < RECORD_ROWS ? head.n - row : RECORD_ROWS;
        if (!record_get(self, ++index, &cell) || cell.kind != RECORD_ACTIONS)
            return false;
        memcpy(&out->actions[row * ARM_JOINTS], cell.payload, rows * ARM_JOINTS * sizeof(float));
    }
    return true;
}

static bool same(const record_tick *told, const pilot_output *output)
{
    return told->write == output->write && told->state == output->state && told->torque == output->torque
           && memcmp(told->goals, output->guard.goals, sizeof told->goals) == 0;
}

record_replay_result record_replay(const record *self, pilot *scratch)
{
    record_replay_result result = {.first_tick = -1, .differing_at = -1};
    uint64_t first, end, chunks_from;
    int joint;
    bool begun = false;
    record_range(self, &first, &end);
    if (pilot_init(scratch, &self->header->config, &joint) != GUARD_CONFIG_OK)
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
        record_tick told;
        memcpy(&told, cell.payload, sizeof told);
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
