/* SPDX-License-Identifier: Apache-2.0 */
/* A servo language, below the bus: bytes out, statuses in; no I/O, no time.
 *
 * bus.c asks, waits and judges in any of them; a new language is one file that
 * fills a `servo_protocol`. Parameters are the registers' bytes as they travel
 * (little endian): what they mean is the arm's business.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    PACKET_MAX = 256,        /* longest packet accepted or made, stuffing included */
    PACKET_PARAMETERS = 248, /* most in a status of any language */
    PACKET_BROADCAST = 0xFE,
};

typedef enum {
    PACKET_MORE,       /* nothing whole yet */
    PACKET_STATUS,     /* `out` holds a status */
    PACKET_JUNK,       /* bytes that belong to no packet were dropped */
    PACKET_BAD_LENGTH, /* a header whose length is impossible */
    PACKET_BAD_CRC,    /* or checksum */
    PACKET_NOT_STATUS, /* a whole packet of another kind: somebody else's instruction */
} packet_verdict;

typedef struct {
    uint8_t id;
    uint8_t error; /* see `alert_bits` and `refused_bits` */
    size_t n;
    uint8_t parameters[PACKET_PARAMETERS];
} packet_status;

typedef struct {
    size_t have;
    uint8_t buffer[2 * PACKET_MAX];
} packet_parser;

static inline void packet_reset(packet_parser *parser)
{
    parser->have = 0;
}

/* Takes as many bytes as fit; returns how many. At least one fits after `next` said PACKET_MORE. */
static inline size_t packet_push(packet_parser *parser, const uint8_t *data, size_t n)
{
    size_t room = sizeof parser->buffer - parser->have;
    if (n > room)
        n = room;
    memcpy(parser->buffer + parser->have, data, n);
    parser->have += n;
    return n;
}

static inline void packet_drop(packet_parser *parser, size_t n)
{
    parser->have -= n;
    memmove(parser->buffer, parser->buffer + n, parser->have);
}

/* The same numbers in every language; Dynamixel's alone has the status. */
enum {
    INSTRUCTION_STATUS = 0x55,
    INSTRUCTION_PING = 0x01,
    INSTRUCTION_READ = 0x02,
    INSTRUCTION_WRITE = 0x03,
    INSTRUCTION_REBOOT = 0x08,
    INSTRUCTION_SYNC_READ = 0x82,
    INSTRUCTION_SYNC_WRITE = 0x83,
};

typedef struct {
    const char *name;      /* as a description says it */
    uint8_t alert_bits;    /* of a status's error byte: the servo is not well */
    uint8_t refused_bits;  /* of it: the instruction was not taken */
    uint8_t word_bytes;    /* of an address, and of a length: 1 or 2 */
    bool reboots;          /* it has that instruction */
    uint16_t table_end;    /* one past the last register that can be read */
    uint16_t ping_bytes;   /* parameters of a ping's answer: 3 (model, firmware), or 0: its first registers tell */
    /* One packet into `out` [PACKET_MAX]: its size, 0 when it does not fit. */
    size_t (*encode)(uint8_t *out, uint8_t id, uint8_t instruction, const uint8_t *parameters, size_t n);
    /* The next verdict. Every answer but PACKET_MORE consumes at least one byte, so a caller's loop ends. */
    packet_verdict (*next)(packet_parser *parser, packet_status *out);
} servo_protocol;

extern const servo_protocol dynamixel2, feetech0; /* packet.c, feetech.c */

/* One instruction in a language, as `encode`. */
size_t instruct_read(const servo_protocol *language, uint8_t *out, uint8_t id, uint16_t address, uint16_t length);
size_t instruct_write(const servo_protocol *language, uint8_t *out, uint8_t id, uint16_t address, const uint8_t *data,
                      uint16_t length);
size_t instruct_sync_read(const servo_protocol *language, uint8_t *out, const uint8_t *ids, size_t servos,
                          uint16_t address, uint16_t length);
/* `data` [servos][length] */
size_t instruct_sync_write(const servo_protocol *language, uint8_t *out, const uint8_t *ids, size_t servos,
                           uint16_t address, uint16_t length, const uint8_t *data);
