/* SPDX-License-Identifier: Apache-2.0 */
/* Every line of Feetech's framing, with expected bytes written out by hand or from the vendor's examples. */
#include "check.h"
#include "servo_protocol.h"

#include <string.h>

static packet_parser parser;
static packet_status status;

static packet_verdict feed(const uint8_t *data, size_t n)
{
    packet_push(&parser, data, n);
    return feetech0.next(&parser, &status);
}

#define SAME(size, bytes) CHECK((size) == sizeof bytes && memcmp(out, bytes, sizeof bytes) == 0)

static int encoding(void)
{
    /* As in the manual: ping of id 1; read of id 1, address 56, 2 bytes; write of an id. Summed by hand: sync read,
     * sync write of ids 1 and 2. */
    const uint8_t ping[] = {0xFF, 0xFF, 0x01, 0x02, 0x01, 0xFB};
    const uint8_t read[] = {0xFF, 0xFF, 0x01, 0x04, 0x02, 0x38, 0x02, 0xBE};
    const uint8_t write[] = {0xFF, 0xFF, 0x01, 0x04, 0x03, 0x05, 0x07, 0xEB};
    const uint8_t asked[] = {0xFF, 0xFF, 0xFE, 0x06, 0x82, 0x38, 0x02, 0x01, 0x02, 0x3C};
    const uint8_t told[] = {0xFF, 0xFF, 0xFE, 0x0A, 0x83, 0x2A, 0x02, 0x01, 0x00, 0x08, 0x02, 0xFF, 0x07, 0x37};
    const uint8_t ids[] = {1, 2}, goals[] = {0x00, 0x08, 0xFF, 0x07}, id = 7;
    uint8_t out[PACKET_MAX], many[PACKET_MAX] = {0};
    SAME(feetech0.encode(out, 1, INSTRUCTION_PING, NULL, 0), ping);
    SAME(instruct_read(&feetech0, out, 1, 56, 2), read);
    SAME(instruct_write(&feetech0, out, 1, 5, &id, 1), write);
    SAME(instruct_sync_read(&feetech0, out, ids, 2, 56, 2), asked);
    SAME(instruct_sync_write(&feetech0, out, ids, 2, 42, 2, goals), told);
    CHECK(!feetech0.reboots && feetech0.ping_bytes == 0);
    /* The most that fits, and one more. */
    CHECK(feetech0.encode(out, 1, INSTRUCTION_WRITE, many, PACKET_PARAMETERS) == 6 + PACKET_PARAMETERS);
    CHECK(feetech0.encode(out, 1, INSTRUCTION_WRITE, many, PACKET_PARAMETERS + 1) == 0);
    CHECK(instruct_write(&feetech0, out, 1, 42, many, PACKET_PARAMETERS - 1) == 6 + PACKET_PARAMETERS);
    CHECK(instruct_write(&feetech0, out, 1, 42, many, PACKET_PARAMETERS) == 0);
    CHECK(instruct_sync_read(&feetech0, out, many, PACKET_PARAMETERS - 2, 56, 2) == 6 + PACKET_PARAMETERS);
    CHECK(instruct_sync_read(&feetech0, out, many, PACKET_PARAMETERS - 1, 56, 2) == 0);
    CHECK(instruct_sync_write(&feetech0, out, many, 16, 42, 14, many) == 6 + 2 + 16 * 15);
    CHECK(instruct_sync_write(&feetech0, out, many, 16, 42, 15, many) == 0);
    return 0;
}

static int whole_and_in_pieces(void)
{
    /* Position 0x0818, FF FF among the parameters behind it. */
    const uint8_t answer[] = {0xFF, 0xFF, 0x03, 0x06, 0x20, 0x18, 0x08, 0xFF, 0xFF, 0xB8};
    packet_reset(&parser);
    CHECK(feetech0.next(&parser, &status) == PACKET_MORE);
    CHECK(feed(answer, sizeof answer) == PACKET_STATUS);
    CHECK(status.id == 3 && status.error == 0x20 && status.n == 4);
    CHECK(memcmp(status.parameters, answer + 5, 4) == 0 && parser.have == 0);
    for (size_t i = 0; i + 1 < sizeof answer; i++)
        CHECK(feed(answer + i, 1) == PACKET_MORE);
    CHECK(feed(answer + sizeof answer - 1, 1) == PACKET_STATUS);
    /* An empty status, as a write is answered. */
    const uint8_t empty[] = {0xFF, 0xFF, 0x05, 0x02, 0x00, 0xF8};
    CHECK(feed(empty, sizeof empty) == PACKET_STATUS && status.id == 5 && status.n == 0);
    return 0;
}

static int damage(void)
{
    const uint8_t parameters[] = {0x11, 0x22, 0x33};
    uint8_t packet[PACKET_MAX];
    size_t size = feetech0.encode(packet, 5, 0, parameters, sizeof parameters);

    /* Junk before a status is told, then the status is found: behind one FF, two, or a row of them. */
    const uint8_t junk[][5] = {
        {0x00, 0xFF, 0x12, 0x34, 0xFF}, {0xFF, 0xFF, 0xFF, 0xFF, 0xFF}, {0x00, 0x01, 0x02, 0xFF, 0xFF}};
    for (size_t i = 0; i < sizeof junk / sizeof junk[0]; i++) {
        packet_reset(&parser);
        packet_push(&parser, junk[i], sizeof junk[i]);
        CHECK(feed(packet, size) == PACKET_JUNK);
        CHECK(feetech0.next(&parser, &status) == PACKET_STATUS && status.id == 5 && status.n == 3);
        CHECK(parser.have == 0);
    }

    /* Every flipped bit and every replaced byte of a status is noticed: never a status of the same length, and none of
     * another but where the length itself is wrong and the sum of a part fits by chance. */
    for (size_t at = 0; at < size; at++)
        for (unsigned byte = 0; byte < 256; byte++) {
            uint8_t damaged[PACKET_MAX];
            if (byte == packet[at])
                continue;
            memcpy(damaged, packet, size);
            damaged[at] = (uint8_t)byte;
            packet_reset(&parser);
            packet_push(&parser, damaged, size);
            packet_verdict verdict;
            do {
                verdict = feetech0.next(&parser, &status);
                CHECK(verdict != PACKET_STATUS || (at == 3 && status.n != sizeof parameters));
            } while (verdict != PACKET_MORE);
        }

    /* After a bad checksum the next packet is found. */
    packet_reset(&parser);
    packet[size - 1] ^= 1;
    CHECK(feed(packet, size) == PACKET_BAD_CRC);
    packet[size - 1] ^= 1;
    CHECK(feed(packet, size) == PACKET_JUNK);
    CHECK(feetech0.next(&parser, &status) == PACKET_STATUS);

    /* Impossible lengths, below and above. */
    const uint8_t small[] = {0xFF, 0xFF, 0x01, 0x01}, large[] = {0xFF, 0xFF, 0x01, PACKET_PARAMETERS + 3};
    packet_reset(&parser);
    CHECK(feed(small, sizeof small) == PACKET_BAD_LENGTH);
    packet_reset(&parser);
    CHECK(feed(large, sizeof large) == PACKET_BAD_LENGTH);

    /* Somebody else's question to all servos, and an error byte that no servo has: an instruction. */
    const uint8_t ids[] = {1, 2};
    packet_reset(&parser);
    CHECK(feed(packet, instruct_sync_read(&feetech0, packet, ids, 2, 56, 2)) == PACKET_NOT_STATUS);
    CHECK(feed(packet, feetech0.encode(packet, 1, INSTRUCTION_SYNC_READ, ids, 2)) == PACKET_NOT_STATUS);
    CHECK(feetech0.next(&parser, &status) == PACKET_MORE);
    return 0;
}

static int bounds(void)
{
    uint8_t body[PACKET_PARAMETERS], packet[PACKET_MAX];
    memset(body, 0x42, sizeof body);
    size_t size = feetech0.encode(packet, 7, 0, body, sizeof body);
    packet_reset(&parser);
    CHECK(feed(packet, size) == PACKET_STATUS && status.n == PACKET_PARAMETERS);
    CHECK(memcmp(status.parameters, body, sizeof body) == 0);
    return 0;
}

int main(void)
{
    return encoding() || whole_and_in_pieces() || damage() || bounds();
}
