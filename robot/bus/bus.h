/* SPDX-License-Identifier: Apache-2.0 */
/* The servo bus: one request, its answers, never somebody else's answer.
 *
 * Every call ends before `deadline_ns` (CLOCK_MONOTONIC). A late reply is never
 * taken for the answer to the next question: input is dropped before each
 * request, a status must match id, length and CRC, an extra or out-of-order one
 * voids the whole call, and while the answer to a read may still be under way
 * (BUS_MEMORY_NS) no other read asks for the same number of bytes: a few
 * neighbouring registers are read too, and thrown away. When so many reads in a
 * row were lost that all lengths are taken, nothing is asked (BUS_TIMEOUT) until
 * the oldest of them is forgotten.
 */
#pragma once

#include "servo_protocol.h"

#include <stdint.h>

enum {
    BUS_SERVOS_MAX = 16,
    BUS_READ_MAX = 16,     /* longest read a caller may ask for */
    BUS_WIRE_MAX = 40,     /* longest read on the wire: six servos answer in 3.1 ms at 1 Mbaud */
};
#define BUS_MEMORY_NS 500000000LL /* four times the latest reply the driver is tested with */
#define BUS_QUIET_NS 1500000LL /* a silent line: longer than a USB adapter's latency timer */

typedef enum { BUS_OK, BUS_TIMEOUT, BUS_CORRUPT, BUS_REFUSED, BUS_UNPLUGGED } bus_result;

typedef struct {
    int fd;
    const servo_protocol *protocol;
    packet_parser parser;
    int64_t lost_ns[BUS_WIRE_MAX + 1]; /* when a read of that length went unanswered; 0: all answered */
    int answered; /* servos whose status came in the last sync read that was asked, one after the other */
} bus;

typedef struct {
    const uint8_t *ids;
    size_t servos;    /* at most BUS_SERVOS_MAX */
    uint16_t address;
    uint16_t length;  /* bytes per servo */
} bus_registers;

void bus_init(bus *bus, int fd, const servo_protocol *protocol);

bus_result bus_ping(bus *bus, uint8_t id, int64_t deadline_ns, uint16_t *model, uint16_t *firmware);

/* BUS_REFUSED: the servo answered that it did not take it, or the arguments are beyond the limits above. */
bus_result bus_write(bus *bus, uint8_t id, uint16_t address, const uint8_t *data, uint16_t length,
                     int64_t deadline_ns);

/* BUS_REFUSED where the protocol knows no such instruction. */
bus_result bus_reboot(bus *bus, uint8_t id, int64_t deadline_ns);

/* `data` [servos][length], at most BUS_READ_MAX bytes each; `alerts` [servos], the error byte's alert bits; both
 * untouched unless BUS_OK. One servo alone is asked without the broadcast. */
bus_result bus_sync_read(bus *bus, const bus_registers *what, int64_t deadline_ns, uint8_t *data, uint8_t *alerts);

/* The two halves of `bus_sync_read`, for a caller that asks on two lines before it reads either. Between them nothing
 * else is asked on this bus; `what` outlives the question. */
typedef struct {
    const bus_registers *what;
    int64_t asked_ns;
    uint16_t start, wire; /* what is asked of each servo; wire 0: nothing was asked */
    bus_result result;    /* of the sending */
} bus_question;

bus_question bus_ask(bus *bus, const bus_registers *what, int64_t deadline_ns);
bus_result bus_take(bus *bus, const bus_question *question, int64_t deadline_ns, uint8_t *data, uint8_t *alerts);

/* `data` [servos][length]. Not answered: BUS_OK means sent. */
bus_result bus_sync_write(bus *bus, const bus_registers *what, const uint8_t *data, int64_t deadline_ns);
