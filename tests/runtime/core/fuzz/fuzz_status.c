/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes into the status parser of a servo language: no crash, an end, and nothing read that was not sent.
 *
 * libFuzzer: clang -g -O1 -fsanitize=fuzzer,address,undefined -I robot/bus tests/runtime/core/fuzz/fuzz_status.c
 * robot/bus/packet.c; of Feetech's language with -DFEETECH and robot/bus/feetech.c.
 * Replay of files: the same with -DREPLAY and without `fuzzer`.
 */
#include "fuzz.h"
#include "servo_protocol.h"

#ifdef FEETECH
static const servo_protocol *const language = &feetech0;
enum { AROUND = 6 }; /* bytes of a status beside its parameters */

static size_t encode(uint8_t *packet, const packet_status *seen)
{
    return feetech0.encode(packet, seen->id, seen->error, seen->parameters, seen->n);
}
#else
static const servo_protocol *const language = &dynamixel2;
enum { AROUND = 11 };

static size_t encode(uint8_t *packet, const packet_status *seen)
{
    uint8_t body[1 + PACKET_PARAMETERS] = {seen->error};
    memcpy(body + 1, seen->parameters, seen->n);
    return dynamixel2.encode(packet, seen->id, INSTRUCTION_STATUS, body, seen->n + 1);
}
#endif

/* What was understood, encoded and parsed again, is the same. */
static void round_trip(const packet_status *seen)
{
    uint8_t packet[PACKET_MAX];
    packet_parser parser;
    packet_status again;
    size_t size = encode(packet, seen);
    if (size == 0)
        return; /* stuffing that was not needed before does not fit any more */
    packet_reset(&parser);
    must(packet_push(&parser, packet, size) == size);
    must(language->next(&parser, &again) == PACKET_STATUS);
    must(again.id == seen->id && again.error == seen->error && again.n == seen->n);
    must(memcmp(again.parameters, seen->parameters, seen->n) == 0);
    must(parser.have == 0);
}

/* The first byte says in pieces of what size the rest arrives. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    packet_parser parser;
    packet_reset(&parser);
    if (size == 0)
        return 0;
    size_t piece = 1U + data[0], at = 1;
    while (at < size) {
        size_t n = size - at < piece ? size - at : piece;
        size_t taken = packet_push(&parser, data + at, n);
        must(taken > 0 && taken <= n);
        at += taken;
        for (;;) {
            packet_status status;
            size_t before = parser.have;
            packet_verdict verdict = language->next(&parser, &status);
            if (verdict == PACKET_MORE)
                break;
            must(parser.have < before);
            if (verdict == PACKET_STATUS) {
                must(status.n <= PACKET_PARAMETERS && status.n + AROUND <= before);
                round_trip(&status);
            }
        }
        must(parser.have < PACKET_MAX);
    }
    return 0;
}
