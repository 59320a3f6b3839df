/* SPDX-License-Identifier: Apache-2.0 */
/* Feetech protocol 0 framing (STS and SMS servos): bytes in, verdicts out; no I/O, no time.
 *
 *   FF FF | id | length | instruction | parameters | checksum
 *
 * `length` counts everything behind it; the checksum is the inverted low byte of
 * the sum from the id on. Nothing is stuffed: a header may stand in the
 * parameters, and one damaged packet in 256 passes the checksum. So whoever asks
 * also knows id and length of the answer (bus.h), and a reading that jumps is
 * confirmed before it is used (pilot.h). A status has the servo's error bits in
 * place of the instruction: they are below 0x80, and no answer comes from the
 * broadcast id. Source: Feetech, "SMS/STS communication protocol manual"; the
 * same as in the vendor's scservo_sdk (feetech-servo-sdk 1.0.0).
 */
#include "servo_protocol.h"

enum { HEAD = 4 /* header, id, length */ };
enum { LENGTH_MIN = 2 /* error, checksum */, LENGTH_MAX = PACKET_PARAMETERS + 2, ERROR_MAX = 0x7F };
enum { TABLE_END = 87 }; /* registers 0..86 of the STS series */

static uint8_t checksum(const uint8_t *packet, size_t n)
{
    unsigned sum = 0;
    for (size_t i = 2; i < n; i++)
        sum += packet[i];
    return (uint8_t)~sum;
}

static size_t encode(uint8_t *out, uint8_t id, uint8_t instruction, const uint8_t *parameters, size_t n)
{
    if (n + 2 > LENGTH_MAX)
        return 0;
    size_t size = HEAD + 1 + n;
    out[0] = out[1] = 0xFF;
    out[2] = id;
    out[3] = (uint8_t)(n + 2);
    out[4] = instruction;
    if (n > 0)
        memcpy(out + HEAD + 1, parameters, n);
    out[size] = checksum(out, size);
    return size + 1;
}

/* Offset of the first place where a header stands or may still become one. FF is no id: of a row of them the last two
 * are the header. */
static size_t find_header(const packet_parser *parser)
{
    const uint8_t *bytes = parser->buffer;
    size_t at = 0;
    for (; at < parser->have; at++) {
        size_t n = parser->have - at;
        if (bytes[at] == 0xFF && (n < 2 || bytes[at + 1] == 0xFF) && (n < 3 || bytes[at + 2] != 0xFF))
            break;
    }
    return at;
}

static packet_verdict next(packet_parser *parser, packet_status *out)
{
    size_t junk = find_header(parser);
    if (junk > 0) {
        packet_drop(parser, junk);
        return PACKET_JUNK;
    }
    if (parser->have < HEAD)
        return PACKET_MORE;
    const uint8_t *bytes = parser->buffer;
    size_t length = bytes[3], whole = HEAD + length;
    if (length < LENGTH_MIN || length > LENGTH_MAX) {
        packet_drop(parser, 1);
        return PACKET_BAD_LENGTH;
    }
    if (parser->have < whole)
        return PACKET_MORE;
    if (bytes[whole - 1] != checksum(bytes, whole - 1)) {
        packet_drop(parser, 1);
        return PACKET_BAD_CRC;
    }
    packet_verdict verdict = PACKET_NOT_STATUS;
    if (bytes[2] < PACKET_BROADCAST && bytes[4] <= ERROR_MAX) {
        *out = (packet_status){.id = bytes[2], .error = bytes[4], .n = length - 2};
        memcpy(out->parameters, bytes + HEAD + 1, out->n);
        verdict = PACKET_STATUS;
    }
    packet_drop(parser, whole);
    return verdict;
}

/* The error bits say how the servo is, never that it did not take an instruction: whoever writes reads back. Nor does
 * any instruction start a servo anew. */
const servo_protocol feetech0 = {
    .name = "feetech0",
    .alert_bits = ERROR_MAX,
    .table_end = TABLE_END,
    .word_bytes = 1,
    .encode = encode,
    .next = next,
};
