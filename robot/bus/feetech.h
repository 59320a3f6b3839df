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
#ifndef VLA_FEETECH_H
#define VLA_FEETECH_H

#include "servo_protocol.h"

extern const servo_protocol feetech0;

#endif
