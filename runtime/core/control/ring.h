/* SPDX-License-Identifier: Apache-2.0 */
/* Chunks from inference to control: a mapped file, one writer, one reader.
 *
 * The writer may die at any instruction and be restarted; the reader never
 * waits. A slot that is rewritten while it is read, or whose CRC is wrong, is
 * reported as torn and never becomes a chunk.
 */
#pragma once

#include "chunk.h"
#include "shared.h"

enum { RING_SLOTS = 8 };

/* What inference says of itself beside its chunks. */
typedef struct {
    int64_t p99_ns;          /* p99 of an inference, measured or allowed while it is measured; 0: none said */
    uint64_t plan_then_move; /* 1: this host waits for rest chunks; 0: replans while moving */
    int64_t dropped_through; /* chunks of observations up to this sequence are void: the scene changed; -1: none */
    uint64_t ready;          /* 1: measured, it plans as soon as control takes chunks */
} ring_notice;

typedef struct {
    shared_slot slot;
    uint64_t index; /* of the chunk in it, counted from 0 */
    chunk data;
    uint32_t crc; /* of index and data */
    uint32_t reserved;
} ring_slot;

typedef struct {
    uint64_t magic;
    uint64_t bytes;
    uint64_t written; /* chunks ever written */
    shared_slot notice_slot;
    ring_notice notice;
    uint64_t writer; /* who writes: another number for each that claimed it; 0: nobody, the last one has resigned */
    uint64_t reserved[6];
    ring_slot slots[RING_SLOTS];
} ring_file;

/* Maps the file, made by whichever side comes first; only the writer's mapping can be written. 0 or an errno. */
int ring_open(shared_file *file, const char *path, bool writer);

/* One process writes: holds the lock of the file as long as the descriptor is open and stamps the writer's number.
 * The descriptor, or -errno; EWOULDBLOCK: another one writes. */
int ring_claim(ring_file *ring, const char *path, uint64_t writer);
/* Gives the claim back: nobody writes. */
void ring_resign(ring_file *ring, int claim);
uint64_t ring_writer(const ring_file *ring);

void ring_write(ring_file *ring, const chunk *data);
void ring_announce(ring_file *ring, const ring_notice *notice);

typedef struct {
    const ring_file *ring;
    uint64_t next;      /* index of the next chunk to read */
    uint64_t overwritten; /* chunks lost because they were rewritten before they were read */
} ring_reader;

/* Starts behind everything written so far. */
void ring_reader_start(ring_reader *self, const ring_file *ring);

typedef enum { RING_EMPTY, RING_CHUNK, RING_TORN } ring_result;
ring_result ring_take(ring_reader *self, chunk *out);
/* False: being written, the old notice stays. */
bool ring_notice_read(const ring_reader *self, ring_notice *out);

/* Shape and finiteness of a chunk that came whole: CHUNK_TAKEN, CHUNK_SHAPE or CHUNK_NOT_FINITE. */
chunk_verdict ring_check(const chunk *data, uint32_t joints);
