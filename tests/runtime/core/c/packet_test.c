/* SPDX-License-Identifier: Apache-2.0 */
/* Every line of the packet framing, with expected bytes written out by hand or from the e-Manual's examples. */
#include "check.h"
#include "servo_protocol.h"

#include <stdio.h>
#include <string.h>

static packet_parser parser;
static packet_status status;

static packet_verdict feed(const uint8_t *data, size_t n)
{
    packet_push(&parser, data, n);
    return dynamixel2.next(&parser, &status);
}

/* A status made with the encoder: error byte in front of the parameters. */
static size_t make_status(uint8_t *out, uint8_t id, const uint8_t *body, size_t n)
{
    return dynamixel2.encode(out, id, INSTRUCTION_STATUS, body, n);
}

#define SAME(size, bytes) CHECK((size) == sizeof bytes && memcmp(out, bytes, sizeof bytes) == 0)

static int encoding(void)
{
    /* e-Manual, ping of id 1 and read of id 1, address 132, 4 bytes. */
    const uint8_t ping[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x03, 0x00, 0x01, 0x19, 0x4E};
    const uint8_t read[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x07, 0x00, 0x02, 0x84, 0x00, 0x04, 0x00, 0x1D, 0x15};
    const uint8_t question[] = {0x84, 0x00, 0x04, 0x00};
    uint8_t out[PACKET_MAX];
    SAME(dynamixel2.encode(out, 1, INSTRUCTION_PING, NULL, 0), ping);
    SAME(dynamixel2.encode(out, 1, INSTRUCTION_READ, question, 4), read);
    /* FF FF FD in the parameters gets a stuffed FD; the length counts it. */
    const uint8_t run[] = {0xFF, 0xFF, 0xFD, 0xFD, 0x07};
    CHECK(dynamixel2.encode(out, 9, INSTRUCTION_WRITE, run, 5) == 7 + 1 + 6 + 2);
    CHECK(out[5] == 9 && out[11] == 0xFD && out[12] == 0xFD && out[13] == 0x07);
    uint8_t many[PACKET_MAX] = {0}; /* exactly enough, too long */
    CHECK(dynamixel2.encode(out, 1, INSTRUCTION_WRITE, many, PACKET_MAX - 10) == PACKET_MAX);
    CHECK(dynamixel2.encode(out, 1, INSTRUCTION_WRITE, many, PACKET_MAX - 9) == 0);
    return 0;
}

/* The instructions as the bus asks for them. */
static int language(void)
{
    const uint8_t ids[] = {1, 2}, data[] = {0x96, 0x00, 0x00, 0x00, 0xAA, 0x00, 0x00, 0x00};
    /* e-Manual: sync read of 132 (4 bytes) and sync write of 116, of ids 1 and 2. */
    const uint8_t asked[] = {0xFF, 0xFF, 0xFD, 0x00, 0xFE, 0x09, 0x00, 0x82,
                             0x84, 0x00, 0x04, 0x00, 0x01, 0x02, 0xCE, 0xFA};
    const uint8_t told[] = {0xFF, 0xFF, 0xFD, 0x00, 0xFE, 0x11, 0x00, 0x83, 0x74, 0x00, 0x04, 0x00, 0x01, 0x96,
                            0x00, 0x00, 0x00, 0x02, 0xAA, 0x00, 0x00, 0x00, 0x82, 0x87};
    const uint8_t reboot[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x03, 0x00, 0x08, 0x2F, 0x4E};
    uint8_t out[PACKET_MAX], many[PACKET_MAX] = {0};
    SAME(instruct_sync_read(&dynamixel2, out, ids, 2, 132, 4), asked);
    SAME(instruct_sync_write(&dynamixel2, out, ids, 2, 116, 4, data), told);
    SAME(dynamixel2.encode(out, 1, INSTRUCTION_REBOOT, NULL, 0), reboot);
    CHECK(dynamixel2.reboots && dynamixel2.ping_bytes == 3);
    CHECK(instruct_read(&dynamixel2, out, 1, 132, 4) == 14 && out[7] == INSTRUCTION_READ && out[8] == 132);
    CHECK(out[10] == 4);
    CHECK(instruct_write(&dynamixel2, out, 1, 65, data, 2) == 14 && out[7] == INSTRUCTION_WRITE && out[8] == 65);
    CHECK(out[10] == 0x96);
    /* More than fits. */
    CHECK(instruct_write(&dynamixel2, out, 1, 65, many, PACKET_MAX) == 0);
    CHECK(instruct_sync_read(&dynamixel2, out, many, PACKET_MAX, 132, 4) == 0);
    CHECK(instruct_sync_write(&dynamixel2, out, many, 16, 116, 15, many) == 0);
    return 0;
}

static int whole_and_in_pieces(void)
{
    /* e-Manual: status of id 1, present position 166. */
    const uint8_t answer[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x08, 0x00, 0x55, 0x00, 0xA6, 0x00, 0x00, 0x00, 0x8C, 0xC0};
    packet_reset(&parser);
    CHECK(dynamixel2.next(&parser, &status) == PACKET_MORE);
    CHECK(feed(answer, sizeof answer) == PACKET_STATUS);
    CHECK(status.id == 1 && status.error == 0 && status.n == 4 && status.parameters[0] == 0xA6);
    CHECK(parser.have == 0);
    for (size_t i = 0; i + 1 < sizeof answer; i++)
        CHECK(feed(answer + i, 1) == PACKET_MORE);
    CHECK(feed(answer + sizeof answer - 1, 1) == PACKET_STATUS);
    return 0;
}

static int stuffing(void)
{
    const uint8_t bodies[][7] = {
        {0x00, 0xFF, 0xFF, 0xFD, 0x01, 0x02, 0x03}, {0x80, 0xFF, 0xFF, 0xFD, 0xFD, 0xFF, 0xFF},
        {0xFF, 0xFF, 0xFD, 0xFF, 0xFF, 0xFD, 0xFD}, {0x00, 0xFF, 0xFF, 0xFF, 0xFD, 0x00, 0x00},
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        uint8_t packet[PACKET_MAX];
        size_t size = make_status(packet, 3, bodies[i], 7);
        packet_reset(&parser);
        CHECK(feed(packet, size) == PACKET_STATUS);
        CHECK(status.error == bodies[i][0] && status.n == 6);
        CHECK(memcmp(status.parameters, bodies[i] + 1, 6) == 0);
    }
    return 0;
}

static int damage(void)
{
    const uint8_t body[] = {0x00, 0x11, 0x22};
    uint8_t packet[PACKET_MAX];
    size_t size = make_status(packet, 5, body, sizeof body);

    /* Junk before a status is told, then the status is found. */
    const uint8_t junk[] = {0x00, 0xFF, 0xFF, 0x12, 0xFF};
    packet_reset(&parser);
    packet_push(&parser, junk, sizeof junk);
    CHECK(feed(packet, size) == PACKET_JUNK);
    CHECK(dynamixel2.next(&parser, &status) == PACKET_STATUS && status.id == 5);

    /* Every flipped bit of a status is noticed: never a status with other content. */
    for (size_t bit = 0; bit < 8 * size; bit++) {
        uint8_t damaged[PACKET_MAX];
        memcpy(damaged, packet, size);
        damaged[bit / 8] ^= (uint8_t)(1U << (bit % 8));
        packet_reset(&parser);
        packet_push(&parser, damaged, size);
        packet_verdict verdict;
        do {
            verdict = dynamixel2.next(&parser, &status);
            CHECK(verdict != PACKET_STATUS);
        } while (verdict != PACKET_MORE);
    }

    /* After a bad CRC the next packet is found. */
    packet_reset(&parser);
    packet[size - 1] ^= 1;
    CHECK(feed(packet, size) == PACKET_BAD_CRC);
    packet[size - 1] ^= 1;
    CHECK(feed(packet, size) == PACKET_JUNK);
    CHECK(dynamixel2.next(&parser, &status) == PACKET_STATUS);

    /* Impossible lengths, below and above. */
    const uint8_t small[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x03, 0x00};
    const uint8_t large[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0xFA, 0x00};
    packet_reset(&parser);
    CHECK(feed(small, sizeof small) == PACKET_BAD_LENGTH);
    packet_reset(&parser);
    CHECK(feed(large, sizeof large) == PACKET_BAD_LENGTH);

    /* Somebody else's instruction. */
    const uint8_t question[] = {0x84, 0x00, 0x04, 0x00};
    size = dynamixel2.encode(packet, 1, INSTRUCTION_READ, question, 4);
    packet_reset(&parser);
    CHECK(feed(packet, size) == PACKET_NOT_STATUS);
    CHECK(dynamixel2.next(&parser, &status) == PACKET_MORE);
    return 0;
}

static int bounds(void)
{
    uint8_t body[1 + 245], packet[PACKET_MAX];
    memset(body, 0x42, sizeof body);
    size_t size = make_status(packet, 7, body, sizeof body);
    CHECK(size == PACKET_MAX);
    packet_reset(&parser);
    CHECK(feed(packet, size) == PACKET_STATUS && status.n == 245);
    /* The buffer takes no more than it has. */
    uint8_t flood[3 * PACKET_MAX];
    memset(flood, 0xAA, sizeof flood);
    packet_reset(&parser);
    CHECK(packet_push(&parser, flood, sizeof flood) == 2 * PACKET_MAX);
    CHECK(packet_push(&parser, flood, 1) == 0);
    CHECK(dynamixel2.next(&parser, &status) == PACKET_JUNK && parser.have == 0);
    return 0;
}

int main(void)
{
    return encoding() || language() || whole_and_in_pieces() || stuffing() || damage() || bounds();
}
