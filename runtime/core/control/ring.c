/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const uint64_t magic = 0x31474e4952414c56; /* "VLARING1" */

/* The checked part of a slot: index and chunk, as they stand in memory. */
enum { CHECKED_BYTES = offsetof(ring_slot, crc) - offsetof(ring_slot, index) };
enum { COPIED_WORDS = (offsetof(ring_slot, reserved) - offsetof(ring_slot, index)) / 4 };

int ring_open(shared_file *file, const char *path, bool writer)
{
    int failure = shared_open_marked(file, path, sizeof(ring_file), true, magic); /* both sides write the same */
    if (failure == 0 && !writer)
        shared_seal(file);
    return failure;
}

int ring_claim(ring_file *ring, const char *path, uint64_t writer)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        close(fd);
        return -why;
    }
    shared_store(&ring->writer, writer);
    return fd;
}

void ring_resign(ring_file *ring, int claim)
{
    shared_store(&ring->writer, 0);
    close(claim);
}

uint64_t ring_writer(const ring_file *ring)
{
    return shared_load(&ring->writer);
}

void ring_write(ring_file *ring, const chunk *data)
{
    uint64_t index = shared_load(&ring->written);
    ring_slot *slot = &ring->slots[index % RING_SLOTS];
    ring_slot filled = {.index = index, .data = *data};
    filled.crc = shared_crc32(&filled.index, CHECKED_BYTES);
    shared_write(&slot->slot, (uint32_t *)&slot->index, &filled.index, COPIED_WORDS);
    shared_store(&ring->written, index + 1);
}

void ring_announce(ring_file *ring, const ring_notice *notice)
{
    shared_write(&ring->notice_slot, (uint32_t *)&ring->notice, notice, sizeof *notice / 4);
}

void ring_reader_start(ring_reader *self, const ring_file *ring)
{
    *self = (ring_reader){.ring = ring, .next = shared_load(&ring->written)};
}

ring_result ring_take(ring_reader *self, chunk *out)
{
    uint64_t written = shared_load(&self->ring->written);
    if (written < self->next) /* the file was damaged: what it counts cannot be trusted */
        self->next = written;
    if (written == self->next)
        return RING_EMPTY;
    if (written - self->next > RING_SLOTS) {
        self->overwritten += written - self->next - RING_SLOTS;
        self->next = written - RING_SLOTS;
    }
    uint64_t index = self->next++;
    const ring_slot *slot = &self->ring->slots[index % RING_SLOTS];
    ring_slot copy;
    if (!shared_read(&slot->slot, &copy.index, (const uint32_t *)&slot->index, COPIED_WORDS))
        return RING_TORN;
    if (copy.index != index || copy.crc != shared_crc32(&copy.index, CHECKED_BYTES))
        return RING_TORN;
    *out = copy.data;
    return RING_CHUNK;
}

bool ring_notice_read(const ring_reader *self, ring_notice *out)
{
    ring_notice copy;
    if (!shared_read(&self->ring->notice_slot, &copy, (const uint32_t *)&self->ring->notice, sizeof copy / 4))
        return false;
    *out = copy;
    return true;
}

chunk_verdict ring_check(const chunk *data, uint32_t joints)
{
    if (data->n < 1 || data->n > CHUNK_ACTIONS_MAX || data->joints != joints || data->n * joints > CHUNK_VALUES_MAX ||
        data->kind > CHUNK_REST)
        return CHUNK_SHAPE;
    for (uint32_t i = 0; i < data->n * joints; i++)
        if (!isfinite(data->actions[i]))
            return CHUNK_NOT_FINITE;
    return CHUNK_TAKEN;
}
