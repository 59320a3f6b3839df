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

enum { INSTRUCTION_STATUS = 0x55 };

extern const servo_protocol dynamixel2;

#endif
