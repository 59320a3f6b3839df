/* SPDX-License-Identifier: Apache-2.0 */
#include "bus.h"

#include "serial.h"

#include <stdbool.h>
#include <string.h>

void bus_init(bus *bus, int fd, const servo_protocol *protocol)
{
    memset(bus, 0, sizeof *bus);
    bus->protocol = protocol;
    bus->fd = fd;
}

static bus_result from_serial(serial_result result)
{
    static const bus_result meaning[] = {
        [SERIAL_OK] = BUS_OK, [SERIAL_TIMEOUT] = BUS_TIMEOUT, [SERIAL_UNPLUGGED] = BUS_UNPLUGGED};
    return meaning[result];
}

/* Sends `size` bytes of an instruction; 0: it did not fit a packet. */
static bus_result request(bus *bus, const uint8_t *packet, size_t size, int64_t deadline_ns)
{
    if (size == 0)
        return BUS_REFUSED;
    if (serial_now_ns() >= deadline_ns)
        return BUS_TIMEOUT;
    bus_result result = from_serial(serial_drop_input(bus->fd, deadline_ns));
    packet_reset(&bus->parser);
    if (result != BUS_OK)
        return result;
    return from_serial(serial_send(bus->fd, packet, size, deadline_ns));
}

/* The next status on the line; anything else on the line is BUS_CORRUPT. */
static bus_result next_status(bus *bus, int64_t deadline_ns, packet_status *out)
{
    for (;;) {
        packet_verdict verdict = bus->protocol->next(&bus->parser, out);
        if (verdict == PACKET_STATUS)
            return BUS_OK;
        if (verdict != PACKET_MORE)
            return BUS_CORRUPT;
        uint8_t bytes[PACKET_MAX];
        size_t got;
        serial_result result = serial_receive(bus->fd, bytes, sizeof bytes, deadline_ns, &got);
        if (result != SERIAL_OK)
            return from_serial(result);
        packet_push(&bus->parser, bytes, got);
    }
}

/* After a spoilt answer servos may still be talking: wait, within the deadline, until the line is silent. */
static void drain(bus *bus, int64_t deadline_ns)
{
    uint8_t bytes[PACKET_MAX];
    size_t got;
    int64_t quiet;
    do {
        quiet = serial_now_ns() + BUS_QUIET_NS;
        quiet = quiet < deadline_ns ? quiet : deadline_ns;
    } while (serial_receive(bus->fd, bytes, sizeof bytes, quiet, &got) == SERIAL_OK && serial_now_ns() < deadline_ns);
}

/* Nothing may follow the last expected status: neither parsed bytes nor bytes that already lie there. */
static bus_result nothing_extra(bus *bus)
{
    uint8_t bytes[PACKET_MAX];
    size_t got = 0;
    if (bus->parser.have > 0)
        return BUS_CORRUPT;
    serial_result result = serial_receive(bus->fd, bytes, sizeof bytes, 0, &got);
    if (result == SERIAL_UNPLUGGED)
        return BUS_UNPLUGGED;
    return got > 0 ? BUS_CORRUPT : BUS_OK;
}

/* One status of `id` with `length` parameters. */
static bus_result expect(bus *bus, uint8_t id, size_t length, int64_t deadline_ns, packet_status *out)
{
    bus_result result = next_status(bus, deadline_ns, out);
    if (result != BUS_OK)
        return result;
    if (out->id != id)
        return BUS_CORRUPT;
    if (out->error & bus->protocol->refused_bits)
        return BUS_REFUSED;
    return out->n == length ? BUS_OK : BUS_CORRUPT;
}

static bus_result finish(bus *bus, bus_result result, int64_t deadline_ns)
{
    if (result == BUS_OK)
        result = nothing_extra(bus);
    if (result != BUS_OK && result != BUS_UNPLUGGED)
        drain(bus, deadline_ns);
    return result;
}

/* The least length that no unanswered read asked for lately; 0: all are taken. */
static uint16_t fresh_length(const bus *bus, uint16_t length, int64_t now_ns)
{
    for (uint16_t wire = length; wire <= BUS_WIRE_MAX; wire++)
        if (bus->lost_ns[wire] == 0 || now_ns - bus->lost_ns[wire] > BUS_MEMORY_NS)
            return wire;
    return 0;
}

bus_question bus_ask(bus *bus, const bus_registers *what, int64_t deadline_ns)
{
    bus_question asked = {.what = what, .asked_ns = serial_now_ns(), .result = BUS_REFUSED};
    if (what->servos == 0 || what->servos > BUS_SERVOS_MAX || what->length == 0 || what->length > BUS_READ_MAX ||
        what->address + what->length > bus->protocol->table_end)
        return asked;
    /* Not asked, so no answer can come late; or the question would take a late answer for its own. */
    asked.wire = asked.asked_ns >= deadline_ns ? 0 : fresh_length(bus, what->length, asked.asked_ns);
    asked.result = BUS_TIMEOUT;
    if (asked.wire == 0)
        return asked;
    /* The surplus lies behind the wanted registers, before them where the table ends. */
    bool fits = what->address + asked.wire <= bus->protocol->table_end;
    asked.start = fits ? what->address : (uint16_t)(bus->protocol->table_end - asked.wire);
    uint8_t packet[PACKET_MAX];
    size_t size = what->servos == 1
                      ? instruct_read(bus->protocol, packet, what->ids[0], asked.start, asked.wire)
                      : instruct_sync_read(bus->protocol, packet, what->ids, what->servos, asked.start, asked.wire);
    bus->answered = 0;
    asked.result = request(bus, packet, size, deadline_ns);
    return asked;
}

bus_result bus_take(bus *bus, const bus_question *question, int64_t deadline_ns, uint8_t *data, uint8_t *alerts)
{
    const bus_registers *what = question->what;
    uint8_t bytes[BUS_SERVOS_MAX * BUS_READ_MAX];
    uint8_t alert[BUS_SERVOS_MAX];
    bus_result result = question->result;
    if (question->wire == 0)
        return result;
    for (size_t i = 0; i < what->servos && result == BUS_OK; i++) {
        packet_status status;
        result = expect(bus, what->ids[i], question->wire, deadline_ns, &status);
        if (result != BUS_OK)
            break;
        memcpy(bytes + i * what->length, status.parameters + (what->address - question->start), what->length);
        alert[i] = status.error & bus->protocol->alert_bits;
        bus->answered++;
    }
    result = finish(bus, result, deadline_ns);
    if (result != BUS_OK) {
        bus->lost_ns[question->wire] = question->asked_ns;
        return result;
    }
    bus->lost_ns[question->wire] = 0;
    memcpy(data, bytes, what->servos * what->length);
    memcpy(alerts, alert, what->servos);
    return BUS_OK;
}

bus_result bus_sync_read(bus *bus, const bus_registers *what, int64_t deadline_ns, uint8_t *data, uint8_t *alerts)
{
    bus_question question = bus_ask(bus, what, deadline_ns);
    return bus_take(bus, &question, deadline_ns, data, alerts);
}

/* An instruction that is answered by `length` parameters. */
static bus_result answered(bus *bus, uint8_t id, const uint8_t *packet, size_t size, size_t length, int64_t deadline_ns,
                           packet_status *status)
{
    bus_result result = request(bus, packet, size, deadline_ns);
    if (result == BUS_OK)
        result = expect(bus, id, length, deadline_ns, status);
    return finish(bus, result, deadline_ns);
}

bus_result bus_ping(bus *bus, uint8_t id, int64_t deadline_ns, uint16_t *model, uint16_t *firmware)
{
    packet_status status;
    uint8_t packet[PACKET_MAX], identity[5], alert;
    size_t size = bus->protocol->encode(packet, id, INSTRUCTION_PING, NULL, 0), told = bus->protocol->ping_bytes;
    bus_result result = answered(bus, id, packet, size, told, deadline_ns, &status);
    if (result != BUS_OK)
        return result;
    if (told > 0) {
        *model = (uint16_t)(status.parameters[0] | (status.parameters[1] << 8));
        *firmware = status.parameters[2];
        return BUS_OK;
    }
    /* Registers 0 to 4: firmware (2 bytes), one byte, model number (2 bytes). */
    bus_registers what = {.ids = &id, .servos = 1, .address = 0, .length = sizeof identity};
    result = bus_sync_read(bus, &what, deadline_ns, identity, &alert);
    if (result == BUS_OK) {
        *firmware = (uint16_t)(identity[0] << 8 | identity[1]);
        *model = (uint16_t)(identity[3] | identity[4] << 8);
    }
    return result;
}

bus_result bus_write(bus *bus, uint8_t id, uint16_t address, const uint8_t *data, uint16_t length,
                     int64_t deadline_ns)
{
    packet_status status;
    uint8_t packet[PACKET_MAX];
    if (length == 0 || length > BUS_READ_MAX)
        return BUS_REFUSED;
    size_t size = instruct_write(bus->protocol, packet, id, address, data, length);
    return answered(bus, id, packet, size, 0, deadline_ns, &status);
}

bus_result bus_reboot(bus *bus, uint8_t id, int64_t deadline_ns)
{
    packet_status status;
    uint8_t packet[PACKET_MAX];
    if (!bus->protocol->reboots)
        return BUS_REFUSED;
    size_t size = bus->protocol->encode(packet, id, INSTRUCTION_REBOOT, NULL, 0);
    return answered(bus, id, packet, size, 0, deadline_ns, &status);
}

bus_result bus_sync_write(bus *bus, const bus_registers *what, const uint8_t *data, int64_t deadline_ns)
{
    uint8_t packet[PACKET_MAX];
    if (what->servos == 0 || what->servos > BUS_SERVOS_MAX || what->length == 0 || what->length > BUS_READ_MAX)
        return BUS_REFUSED;
    size_t size =
        instruct_sync_write(bus->protocol, packet, what->ids, what->servos, what->address, what->length, data);
    return request(bus, packet, size, deadline_ns);
}
