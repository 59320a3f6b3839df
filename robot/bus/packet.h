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
#ifndef VLA_PACKET_H
#define VLA_PACKET_H

#include <stddef.h>
#include <stdint.h>

enum {
    PACKET_HEAD = 7,       /* header, id, length */
    PACKET_MAX = 256,      /* longest packet accepted or made, stuffing included */
    PACKET_PARAMETERS = PACKET_MAX - PACKET_HEAD - 4,
    PACKET_BROADCAST = 0xFE,
};

enum {
    INSTRUCTION_PING = 0x01,
    INSTRUCTION_READ = 0x02,
    INSTRUCTION_WRITE = 0x03,
    INSTRUCTION_REBOOT = 0x08,
    INSTRUCTION_STATUS = 0x55,
    INSTRUCTION_SYNC_READ = 0x82,
    INSTRUCTION_SYNC_WRITE = 0x83,
};

typedef enum {
    PACKET_MORE,       /* nothing whole yet */
    PACKET_STATUS,     /* `out` holds a status */
    PACKET_JUNK,       /* bytes that belong to no packet were dropped */
    PACKET_BAD_LENGTH, /* a header whose length is impossible */
    PACKET_BAD_CRC,
    PACKET_NOT_STATUS, /* a whole packet of another kind: somebody else's instruction */
} packet_verdict;

typedef struct {
    uint8_t id;
    uint8_t error; /* bit 7: hardware alert; low bits: the servo refused the instruction */
    size_t n;
    uint8_t parameters[PACKET_PARAMETERS];
} packet_status;

typedef struct {
    size_t have;
    uint8_t buffer[2 * PACKET_MAX];
} packet_parser;

/* CRC-16, polynomial 0x8005, start 0, most significant bit first. */
uint16_t packet_crc(const uint8_t *data, size_t n);

/* Writes one instruction packet; returns its size, 0 when it would pass `capacity` or PACKET_MAX. */
size_t packet_encode(uint8_t *out, size_t capacity, uint8_t id, uint8_t instruction, const uint8_t *parameters,
                     size_t n);

void packet_reset(packet_parser *parser);

/* Takes as many bytes as fit; returns how many. At least one fits after packet_next said PACKET_MORE. */
size_t packet_push(packet_parser *parser, const uint8_t *data, size_t n);

/* The next verdict. Every answer but PACKET_MORE consumes at least one byte, so a caller's loop ends. */
packet_verdict packet_next(packet_parser *parser, packet_status *out);

#endif
