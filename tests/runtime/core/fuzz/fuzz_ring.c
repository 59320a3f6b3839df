/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile chunks.ring: any bytes anywhere in the file, with and without a CRC that fits, read by control's reader
 * and offered to the pilot. No crash, nothing outside the chunk read, no goal outside its limits.
 *
 * libFuzzer: clang -g -O1 -fsanitize=fuzzer,address,undefined -I runtime/core/control -I robot/bus
 *            tests/runtime/core/fuzz/fuzz_ring.c and the files of LOOP in test_core_c.py -lm
 * Replay of files: the same with -DREPLAY and without `fuzzer`.
 */
#include "fuzz.h"
#include "pilot.h"
#include "ring.h"

static uint64_t page_of_ring[sizeof(ring_file) / 8 + 1];
static pilot flown;
static const int64_t T = 33333333;

enum { JOINTS = 6, LOW = 1000, HIGH = 3000 };

static void start_pilot(void)
{
    pilot_config config = {.joints = JOINTS,
                           .schedule.joints = JOINTS,
                           .period_ns = T,
                           .action_ns = T,
                           .guard_version = GUARD_VERSION,
                           .patience_min_ns = 60 * T,
                           .patience_max_ns = 100 * T,
                           .reads_latch_ns = 15 * T};
    for (int i = 0; i < JOINTS; i++) {
        config.limits[i] = (guard_limits){.position_min = LOW,
                                          .position_max = HIGH,
                                          .velocity = 2000,
                                          .acceleration = 30000,
                                          .jerk = 1e6,
                                          .step = 120,
                                          .tracking = 400,
                                          .scale = 10,
                                          .offset = 2000};
        config.schedule.rest_counts[i] = 10;
    }
    int joint;
    must(pilot_init(&flown, &config, &joint) == GUARD_CONFIG_OK);
}

/* A slot's own checks made to fit, as a hostile writer would. */
static void seal(ring_slot *slot)
{
    struct {
        uint64_t index;
        chunk data;
    } checked;
    checked.index = slot->index;
    checked.data = slot->data;
    slot->crc = shared_crc32(&checked, sizeof checked);
    slot->slot.sequence &= ~1ULL;
}

/* Records of a length byte n, two bytes of place, a mode byte, then n bytes: the file is overwritten there, and a tick
 * runs. Modes: bit 0 seals the slot that is read next, bit 1 counts one chunk more, bit 2 arms. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ring_file *ring = (ring_file *)page_of_ring;
    memset(page_of_ring, 0, sizeof page_of_ring);
    start_pilot();
    ring_reader reader;
    ring_reader_start(&reader, ring);
    int32_t last[JOINTS];
    for (int i = 0; i < JOINTS; i++)
        last[i] = 2000;
    for (int64_t tick = 0; size >= 4 && tick < 100; tick++) {
        size_t n = data[0] < size - 4 ? data[0] : size - 4;
        size_t place = (data[1] | (size_t)data[2] << 8) % sizeof *ring;
        uint8_t mode = data[3];
        memcpy((uint8_t *)ring + place, data + 4, n < sizeof *ring - place ? n : sizeof *ring - place);
        data += 4 + n;
        size -= 4 + n;
        if (mode & 1)
            seal(&ring->slots[reader.next % RING_SLOTS]);
        if (mode & 2)
            ring->written = reader.next + 1;

        ring_notice notice = {0};
        ring_notice_read(&reader, &notice);
        pilot_input input = {.tick = tick,
                             .now_ns = tick * T,
                             .read_result = ARM_OK,
                             .dropped_through = notice.dropped_through,
                             .command = mode & 4 ? COMMAND_ARM : COMMAND_NONE};
        memcpy(input.reading.position, last, sizeof last);
        input.reading.time_ns = input.now_ns;
        pilot_output output;
        pilot_begin(&flown, &input, &output);
        for (int i = 0; i < RING_SLOTS; i++) {
            chunk taken;
            ring_result result = ring_take(&reader, &taken);
            if (result == RING_EMPTY)
                break;
            if (result == RING_TORN)
                continue;
            chunk_verdict verdict = ring_check(&taken, JOINTS);
            input.malformed = input.malformed || chunk_is_malformed(verdict);
            if (verdict == CHUNK_TAKEN) {
                must(taken.n >= 1 && taken.n <= CHUNK_ACTIONS_MAX && taken.joints == JOINTS);
                pilot_offer(&flown, &input, &taken);
            }
        }
        pilot_end(&flown, &input, &output);
        for (int i = 0; i < JOINTS && flown.guard.started; i++) {
            must(output.guard.goals[i] >= LOW && output.guard.goals[i] <= HIGH);
            must(abs(output.guard.goals[i] - last[i]) <= 67 || !output.write); /* 66.7 a tick, in whole counts */
        }
        if (flown.guard.started)
            memcpy(last, output.guard.goals, sizeof last);
    }
    return 0;
}
