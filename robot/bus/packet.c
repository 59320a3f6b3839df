/* SPDX-License-Identifier: Apache-2.0 */
/* Dynamixel protocol 2.0 framing: bytes in, verdicts out; no I/O, no time.
 *
 *   FF FF FD 00 | id | length lo hi | instruction | parameters | crc lo hi
 *
 * `length` counts everything behind it. Where instruction and parameters would
 * contain FF FF FD, an FD is stuffed behind it before length and CRC are made.
 * A status packet has instruction 0x55 and an error byte before its parameters.
 * Source: Robotis e-Manual, "DYNAMIXEL Protocol 2.0".
 */
#include "servo_protocol.h"

static const uint8_t HEADER[4] = {0xFF, 0xFF, 0xFD, 0x00};

enum { HEAD = 7, LENGTH_MIN = 4 }; /* header, id, length; instruction, error, CRC */

/* CRC-16, polynomial 0x8005, start 0, most significant bit first. */
static uint16_t crc_of(const uint8_t *data, size_t n)
{
    uint16_t crc = 0;
    for (size_t i = 0; i < n; i++) {
        crc ^= (uint16_t)(data[i] << 8);
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 0x8000) ? (uint16_t)((crc << 1) ^ 0x8005) : (uint16_t)(crc << 1);
    }
    return crc;
}

static size_t encode(uint8_t *out, uint8_t id, uint8_t instruction, const uint8_t *parameters, size_t n)
{
    memcpy(out, HEADER, sizeof HEADER);
    out[4] = id;
    out[7] = instruction;
    size_t size = HEAD + 1;
    for (size_t i = 0; i < n; i++) {
        /* Two bytes back may be the instruction, which is never FF: a run starts in the parameters. */
        bool stuffed = i >= 2 && parameters[i] == 0xFD && parameters[i - 1] == 0xFF && parameters[i - 2] == 0xFF;
        if (size + 1 + stuffed + 2 > PACKET_MAX) /* this byte, the stuffed one, CRC */
            return 0;
        out[size++] = parameters[i];
        if (stuffed)
            out[size++] = 0xFD;
    }
    size_t length = size - HEAD + 2;
    out[5] = (uint8_t)length;
    out[6] = (uint8_t)(length >> 8);
    uint16_t crc = crc_of(out, size);
    out[size++] = (uint8_t)crc;
    out[size++] = (uint8_t)(crc >> 8);
    return size;
}

/* Offset of the first place where a header stands or may still become one. */
static size_t find_header(const packet_parser *parser)
{
    size_t at = 0;
    for (; at < parser->have; at++) {
        size_t n = parser->have - at;
        if (memcmp(parser->buffer + at, HEADER, n < sizeof HEADER ? n : sizeof HEADER) == 0)
            break;
    }
    return at;
}

/* `body` is error, parameters (stuffed), without CRC; `n` at least 1. */
static void unstuff(const uint8_t *body, size_t n, packet_status *out)
{
    out->error = body[0];
    out->n = 0;
    for (size_t i = 1; i < n; i++) {
        /* The error byte may take part in a run as the stuffing sees it. */
        bool stuffed = i >= 3 && body[i] == 0xFD && body[i - 1] == 0xFD && body[i - 2] == 0xFF && body[i - 3] == 0xFF;
        if (!stuffed)
            out->parameters[out->n++] = body[i];
    }
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
    const uint8_t *buffer = parser->buffer;
    size_t length = (size_t)buffer[5] | ((size_t)buffer[6] << 8);
    size_t whole = HEAD + length;
    if (length < LENGTH_MIN || whole > PACKET_MAX) {
        packet_drop(parser, 1);
        return PACKET_BAD_LENGTH;
    }
    if (parser->have < whole)
        return PACKET_MORE;
    uint16_t crc = (uint16_t)(buffer[whole - 2] | (buffer[whole - 1] << 8));
    if (crc != crc_of(buffer, whole - 2)) {
        packet_drop(parser, 1);
        return PACKET_BAD_CRC;
    }
    packet_verdict verdict = PACKET_NOT_STATUS;
    if (buffer[7] == INSTRUCTION_STATUS) {
        out->id = buffer[4];
        unstuff(buffer + HEAD + 1, whole - 2 - HEAD - 1, out);
        verdict = PACKET_STATUS;
    }
    packet_drop(parser, whole);
    return verdict;
}

const servo_protocol dynamixel2 = {
    .name = "dynamixel2",
    .alert_bits = 0x80,
    .refused_bits = 0x7F,
    .table_end = 147, /* registers 0..146 of the X series can be read in one piece */
    .ping_bytes = 3,
    .word_bytes = 2,
    .reboots = true,
    .encode = encode,
    .next = next,
};
