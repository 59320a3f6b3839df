/* SPDX-License-Identifier: Apache-2.0 */
#include "servo_protocol.h"

/* An address or a length, little endian; room for two bytes. Returns its size. */
static size_t put_word(const servo_protocol *language, uint8_t *out, uint16_t word)
{
    out[0] = (uint8_t)word;
    out[1] = (uint8_t)(word >> 8);
    return language->word_bytes;
}

static size_t put_registers(const servo_protocol *language, uint8_t *out, uint16_t address, uint16_t length)
{
    size_t n = put_word(language, out, address);
    return n + put_word(language, out + n, length);
}

size_t instruct_read(const servo_protocol *language, uint8_t *out, uint8_t id, uint16_t address, uint16_t length)
{
    uint8_t parameters[4];
    size_t n = put_registers(language, parameters, address, length);
    return language->encode(out, id, INSTRUCTION_READ, parameters, n);
}

size_t instruct_write(const servo_protocol *language, uint8_t *out, uint8_t id, uint16_t address, const uint8_t *data,
                      uint16_t length)
{
    uint8_t parameters[PACKET_PARAMETERS];
    size_t n = put_word(language, parameters, address);
    if (n + length > sizeof parameters)
        return 0;
    memcpy(parameters + n, data, length);
    return language->encode(out, id, INSTRUCTION_WRITE, parameters, n + length);
}

size_t instruct_sync_read(const servo_protocol *language, uint8_t *out, const uint8_t *ids, size_t servos,
                          uint16_t address, uint16_t length)
{
    uint8_t parameters[PACKET_PARAMETERS];
    size_t n = put_registers(language, parameters, address, length);
    if (n + servos > sizeof parameters)
        return 0;
    memcpy(parameters + n, ids, servos);
    return language->encode(out, PACKET_BROADCAST, INSTRUCTION_SYNC_READ, parameters, n + servos);
}

size_t instruct_sync_write(const servo_protocol *language, uint8_t *out, const uint8_t *ids, size_t servos,
                           uint16_t address, uint16_t length, const uint8_t *data)
{
    uint8_t parameters[PACKET_PARAMETERS];
    size_t n = put_registers(language, parameters, address, length);
    if (n + servos * (1U + length) > sizeof parameters)
        return 0;
    for (size_t i = 0; i < servos; i++) {
        parameters[n++] = ids[i];
        memcpy(parameters + n, data + i * length, length);
        n += length;
    }
    return language->encode(out, PACKET_BROADCAST, INSTRUCTION_SYNC_WRITE, parameters, n);
}
