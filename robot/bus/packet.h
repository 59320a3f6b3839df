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

#include "servo_protocol.h"

enum { PACKET_HEAD = 7 }; /* header, id, length */

enum {
    INSTRUCTION_PING = 0x01,
    INSTRUCTION_READ = 0x02,
    INSTRUCTION_WRITE = 0x03,
    INSTRUCTION_REBOOT = 0x08,
    INSTRUCTION_STATUS = 0x55,
    INSTRUCTION_SYNC_READ = 0x82,
    INSTRUCTION_SYNC_WRITE = 0x83,
};

/* CRC-16, polynomial 0x8005, start 0, most significant bit first. */
uint16_t packet_crc(const uint8_t *data, size_t n);

/* Writes one instruction packet; returns its size, 0 when it would pass `capacity` or PACKET_MAX. */
size_t packet_encode(uint8_t *out, size_t capacity, uint8_t id, uint8_t instruction, const uint8_t *parameters,
                     size_t n);

/* The next verdict. Every answer but PACKET_MORE consumes at least one byte, so a caller's loop ends. */
packet_verdict packet_next(packet_parser *parser, packet_status *out);

extern const servo_protocol dynamixel2;

#endif
