/* SPDX-License-Identifier: Apache-2.0 */
/* Every line of the packet framing, with expected bytes written out by hand or from the e-Manual's examples. */
#include "check.h"
#include "packet.h"

#include <stdio.h>
#include <string.h>

static packet_parser parser;
static packet_status status;

static packet_verdict feed(const uint8_t *data, size_t n)
{
    packet_push(&parser, data, n);
    return packet_next(&parser, &status);
}

/* A status made with the encoder: error byte in front of the parameters. */
static size_t make_status(uint8_t *out, uint8_t id, const uint8_t *body, size_t n)
{
    return packet_encode(out, PACKET_MAX, id, INSTRUCTION_STATUS, body, n);
}

static int encoding(void)
{
    /* e-Manual, ping of id 1 and read of id 1, address 132, 4 bytes. */
    const uint8_t ping[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x03, 0x00, 0x01, 0x19, 0x4E};
    const uint8_t read[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x07, 0x00, 0x02, 0x84, 0x00, 0x04, 0x00, 0x1D, 0x15};
    const uint8_t question[] = {0x84, 0x00, 0x04, 0x00};
    uint8_t out[PACKET_MAX];
    CHECK(packet_encode(out, sizeof out, 1, INSTRUCTION_PING, NULL, 0) == sizeof ping);
    CHECK(memcmp(out, ping, sizeof ping) == 0);
    CHECK(packet_encode(out, sizeof out, 1, INSTRUCTION_READ, question, 4) == sizeof read);
    CHECK(memcmp(out, read, sizeof read) == 0);
    /* FF FF FD in the parameters gets a stuffed FD; the length counts it. */
    const uint8_t run[] = {0xFF, 0xFF, 0xFD, 0xFD, 0x07};
    CHECK(packet_encode(out, sizeof out, 9, INSTRUCTION_WRITE, run, 5) == 7 + 1 + 6 + 2);
    CHECK(out[5] == 9 && out[11] == 0xFD && out[12] == 0xFD && out[13] == 0x07);
    /* Too small, exactly enough, too long. */
    CHECK(packet_encode(out, 9, 1, INSTRUCTION_PING, NULL, 0) == 0);
    CHECK(packet_encode(out, 10, 1, INSTRUCTION_PING, NULL, 0) == 10);
    uint8_t many[PACKET_MAX] = {0};
    CHECK(packet_encode(out, PACKET_MAX + 50, 1, INSTRUCTION_WRITE, many, sizeof many) == 0);
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
    CHECK(dynamixel2.sync_read(out, ids, 2, 132, 4) == sizeof asked && memcmp(out, asked, sizeof asked) == 0);
    CHECK(dynamixel2.sync_write(out, ids, 2, 116, 4, data) == sizeof told && memcmp(out, told, sizeof told) == 0);
    CHECK(dynamixel2.reboot(out, 1) == sizeof reboot && memcmp(out, reboot, sizeof reboot) == 0);
    CHECK(dynamixel2.ping(out, 1) == 10 && out[7] == INSTRUCTION_PING);
    CHECK(dynamixel2.read(out, 1, 132, 4) == 14 && out[7] == INSTRUCTION_READ && out[8] == 132 && out[10] == 4);
    CHECK(dynamixel2.write(out, 1, 65, data, 2) == 14 && out[7] == INSTRUCTION_WRITE && out[8] == 65 &&
          out[10] == 0x96);
    /* More than fits. */
    CHECK(dynamixel2.write(out, 1, 65, many, PACKET_MAX) == 0);
    CHECK(dynamixel2.sync_read(out, many, PACKET_MAX, 132, 4) == 0);
    CHECK(dynamixel2.sync_write(out, many, 16, 116, 15, many) == 0);
    return 0;
}

static int whole_and_in_pieces(void)
{
    /* e-Manual: status of id 1, present position 166. */
    const uint8_t answer[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x08, 0x00, 0x55, 0x00, 0xA6, 0x00, 0x00, 0x00, 0x8C, 0xC0};
    packet_reset(&parser);
    CHECK(packet_next(&parser, &status) == PACKET_MORE);
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
    CHECK(packet_next(&parser, &status) == PACKET_STATUS && status.id == 5);

    /* Every flipped bit of a status is noticed: never a status with other content. */
    for (size_t bit = 0; bit < 8 * size; bit++) {
        uint8_t damaged[PACKET_MAX];
        memcpy(damaged, packet, size);
        damaged[bit / 8] ^= (uint8_t)(1U << (bit % 8));
        packet_reset(&parser);
        packet_push(&parser, damaged, size);
        packet_verdict verdict;
        do {
            verdict = packet_next(&parser, &status);
            CHECK(verdict != PACKET_STATUS);
        } while (verdict != PACKET_MORE);
    }

    /* After a bad CRC the next packet is found. */
    packet_reset(&parser);
    packet[size - 1] ^= 1;
    CHECK(feed(packet, size) == PACKET_BAD_CRC);
    packet[size - 1] ^= 1;
    CHECK(feed(packet, size) == PACKET_JUNK);
    CHECK(packet_next(&parser, &status) == PACKET_STATUS);

    /* Impossible lengths, below and above. */
    const uint8_t small[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0x03, 0x00};
    const uint8_t large[] = {0xFF, 0xFF, 0xFD, 0x00, 0x01, 0xFA, 0x00};
    packet_reset(&parser);
    CHECK(feed(small, sizeof small) == PACKET_BAD_LENGTH);
    packet_reset(&parser);
    CHECK(feed(large, sizeof large) == PACKET_BAD_LENGTH);

    /* Somebody else's instruction. */
    const uint8_t question[] = {0x84, 0x00, 0x04, 0x00};
    size = packet_encode(packet, sizeof packet, 1, INSTRUCTION_READ, question, 4);
    packet_reset(&parser);
    CHECK(feed(packet, size) == PACKET_NOT_STATUS);
    CHECK(packet_next(&parser, &status) == PACKET_MORE);
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
    CHECK(packet_next(&parser, &status) == PACKET_JUNK && parser.have == 0);
    return 0;
}

int main(void)
{
    return encoding() || language() || whole_and_in_pieces() || stuffing() || damage() || bounds();
}
