/* SPDX-License-Identifier: Apache-2.0 */
/* The ring: order, loss, torn and damaged slots, a dying writer; and a writer racing a reader (run under TSan too).
 *
 * ring_test FILE [CHUNKS]: FILE does not exist yet.
 */
#define _GNU_SOURCE
#include "check.h"
#include "ring.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static chunk data, taken;

static chunk *made(int64_t sequence)
{
    memset(&data, 0, sizeof data);
    data.n = 50;
    data.joints = 6;
    data.observation_sequence = sequence;
    for (int i = 0; i < 50 * 6; i++)
        data.actions[i] = (float)sequence;
    return &data;
}

static int files(const char *path)
{
    shared_file file;
    CHECK(ring_open(&file, "no/such/folder/chunks.ring", true) != 0);
    CHECK(ring_open(&file, path, false) == 0 && !file.writable); /* the reader may come first */
    struct stat info;
    CHECK(stat(path, &info) == 0 && (info.st_mode & 0777) == 0600 && (size_t)info.st_size == sizeof(ring_file));
    shared_close(&file);
    shared_close(&file);
    return 0;
}

/* One process writes at a time, each under a number of its own. */
static int claims(const char *path)
{
    shared_file file;
    CHECK(ring_open(&file, path, true) == 0);
    ring_file *ring = file.memory;
    CHECK(ring_claim(ring, "no/such/folder/chunks.ring", 7) == -ENOENT);
    int first = ring_claim(ring, path, 7);
    CHECK(first >= 0 && ring_writer(ring) == 7);
    CHECK(ring_claim(ring, path, 8) == -EWOULDBLOCK && ring_writer(ring) == 7);
    close(first);
    int second = ring_claim(ring, path, 8);
    CHECK(second >= 0 && ring_writer(ring) == 8);
    ring_resign(ring, second);
    CHECK(ring_writer(ring) == 0);
    shared_close(&file);
    return 0;
}

/* A file of another size is replaced, not cut short; one that is cut short all the same kills nobody. */
static int shortened(const char *path)
{
    char other[4096];
    snprintf(other, sizeof other, "%s.other", path);
    shared_file old, new, reader;
    CHECK(shared_open(&old, other, 16384, true) == 0);
    memset(old.memory, 5, 16384);
    CHECK(shared_open(&reader, other, 4096, false) == EINVAL);
    CHECK(shared_open(&new, other, 4096, true) == 0);
    CHECK(((char *)old.memory)[16383] == 5 && ((char *)new.memory)[0] == 0);
    const shared_file *const files[] = {&old, &new};
    shared_guard(files, 2);
    CHECK(!shared_damaged());
    CHECK(truncate(other, 0) == 0);
    CHECK(((volatile char *)new.memory)[100] == 0 && shared_damaged());
    ((volatile char *)new.memory)[100] = 1;
    shared_unguard();
    pid_t child = fork();
    if (child == 0) { /* a page that is not ours: as without a guard */
        shared_file alone;
        if (shared_open(&alone, other, 8192, true) != 0 || truncate(other, 0) != 0)
            _exit(1);
        shared_guard(files, 2);
        _exit(((volatile char *)alone.memory)[5000]);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && (WIFSIGNALED(status) || WEXITSTATUS(status) != 0));
    shared_close(&old);
    shared_close(&new);
    unlink(other);
    return 0;
}

static int order(const char *path)
{
    shared_file writing, reading;
    CHECK(ring_open(&writing, path, true) == 0 && ring_open(&reading, path, false) == 0);
    ring_file *ring = writing.memory;
    ring_reader reader;
    ring_reader_start(&reader, reading.memory);
    CHECK(ring_take(&reader, &taken) == RING_EMPTY);
    for (int64_t i = 0; i < 3; i++)
        ring_write(ring, made(i));
    for (int64_t i = 0; i < 3; i++) {
        CHECK(ring_take(&reader, &taken) == RING_CHUNK && taken.observation_sequence == i &&
              taken.actions[299] == (float)i);
        CHECK(memcmp(&taken, made(i), sizeof taken) == 0);
    }
    CHECK(ring_take(&reader, &taken) == RING_EMPTY);
    for (int64_t i = 0; i < RING_SLOTS + 5; i++) /* five more than fit: the oldest are lost and counted */
        ring_write(ring, made(100 + i));
    for (int64_t i = 5; i < RING_SLOTS + 5; i++)
        CHECK(ring_take(&reader, &taken) == RING_CHUNK && taken.observation_sequence == 100 + i);
    CHECK(ring_take(&reader, &taken) == RING_EMPTY && reader.overwritten == 5);
    ring_write(ring, made(1));
    ring_reader_start(&reader, reading.memory); /* a restarted control begins behind what is there */
    CHECK(ring_take(&reader, &taken) == RING_EMPTY);

    ring_notice notice = {.p99_ns = 5, .plan_then_move = 1, .dropped_through = 9, .ready = 1}, told = {0};
    ring_announce(ring, &notice);
    CHECK(ring_notice_read(&reader, &told) && told.p99_ns == 5 && told.plan_then_move == 1 &&
          told.dropped_through == 9 && told.ready == 1);
    ring->notice_slot.sequence |= 1; /* the writer died in it */
    notice.p99_ns = 6;
    CHECK(!ring_notice_read(&reader, &told) && told.p99_ns == 5);
    ring_announce(ring, &notice); /* and the next one mends it */
    CHECK(ring_notice_read(&reader, &told) && told.p99_ns == 6);
    shared_close(&writing);
    shared_close(&reading);
    return 0;
}

static int damage(const char *path)
{
    shared_file writing;
    CHECK(ring_open(&writing, path, true) == 0);
    ring_file *ring = writing.memory;
    ring_reader reader;
    ring_reader_start(&reader, ring);
    for (size_t byte = 0; byte < sizeof(chunk); byte += 97) { /* one flipped bit anywhere */
        ring_write(ring, made(3));
        uint8_t *bytes = (uint8_t *)&ring->slots[(ring->written - 1) % RING_SLOTS].data;
        bytes[byte] ^= (uint8_t)(1 << (byte % 8));
        memset(&taken, 0x55, sizeof taken);
        CHECK(ring_take(&reader, &taken) == RING_TORN && taken.n == 0x55555555);
    }
    ring_write(ring, made(4));
    ring->slots[(ring->written - 1) % RING_SLOTS].slot.sequence |= 1; /* being rewritten */
    CHECK(ring_take(&reader, &taken) == RING_TORN);
    ring_write(ring, made(5));
    CHECK(ring_take(&reader, &taken) == RING_CHUNK);
    ring->written += RING_SLOTS; /* counts what was never written: the slots hold other chunks */
    for (int i = 0; i < RING_SLOTS; i++)
        CHECK(ring_take(&reader, &taken) == RING_TORN);
    ring->written = 2;
    CHECK(ring_take(&reader, &taken) == RING_EMPTY && reader.next == 2);
    ring_write(ring, made(6));
    CHECK(ring_take(&reader, &taken) == RING_CHUNK && taken.observation_sequence == 6);
    ring->written = UINT64_MAX;
    CHECK(ring_take(&reader, &taken) == RING_TORN);
    ring->written = 0;
    shared_close(&writing);
    return 0;
}

static int shapes(void)
{
    chunk *chunk = made(1);
    CHECK(ring_check(chunk, 6) == CHUNK_TAKEN);
    chunk->kind = CHUNK_REST;
    CHECK(ring_check(chunk, 6) == CHUNK_TAKEN);
    chunk->kind = 2;
    CHECK(ring_check(chunk, 6) == CHUNK_SHAPE && chunk_is_malformed(CHUNK_SHAPE) && !chunk_is_malformed(CHUNK_TORN));
    chunk = made(1);
    chunk->joints = 5;
    CHECK(ring_check(chunk, 6) == CHUNK_SHAPE);
    chunk = made(1);
    chunk->n = 0;
    CHECK(ring_check(chunk, 6) == CHUNK_SHAPE);
    chunk->n = CHUNK_ACTIONS_MAX + 1;
    CHECK(ring_check(chunk, 6) == CHUNK_SHAPE);
    chunk->n = CHUNK_ACTIONS_MAX;
    CHECK(ring_check(chunk, 6) == CHUNK_TAKEN);
    chunk->actions[CHUNK_ACTIONS_MAX * 6 - 1] = NAN;
    CHECK(ring_check(chunk, 6) == CHUNK_NOT_FINITE);
    chunk = made(1);
    chunk->actions[300] = NAN; /* behind the last action */
    CHECK(ring_check(chunk, 6) == CHUNK_TAKEN);
    chunk->actions[0] = INFINITY;
    CHECK(ring_check(chunk, 6) == CHUNK_NOT_FINITE && chunk_is_malformed(CHUNK_NOT_FINITE));
    return 0;
}

typedef struct {
    ring_file *ring;
    long chunks;
} race;

static void *write_all(void *context)
{
    race *race = context;
    for (long i = 0; i < race->chunks; i++) {
        chunk own;
        memset(&own, 0, sizeof own);
        own.n = 50;
        own.joints = 6;
        own.observation_sequence = i;
        for (int k = 0; k < 300; k++)
            own.actions[k] = (float)i;
        ring_write(race->ring, &own);
        ring_notice notice = {.p99_ns = i, .dropped_through = i};
        ring_announce(race->ring, &notice);
    }
    return NULL;
}

/* Whatever the interleaving: a chunk comes whole and in order, or not at all. */
static int racing(const char *path, long chunks)
{
    shared_file writing, reading;
    CHECK(ring_open(&writing, path, true) == 0 && ring_open(&reading, path, false) == 0);
    ring_reader reader;
    ring_reader_start(&reader, reading.memory);
    race race = {writing.memory, chunks};
    pthread_t writer;
    CHECK(pthread_create(&writer, NULL, write_all, &race) == 0);
    int64_t last = -1;
    long whole = 0, torn = 0;
    while (last < chunks - 1) {
        ring_notice notice;
        if (ring_notice_read(&reader, &notice))
            CHECK(notice.p99_ns == notice.dropped_through || notice.plan_then_move);
        ring_result result = ring_take(&reader, &taken);
        torn += result == RING_TORN;
        if (result == RING_CHUNK) {
            whole++;
            CHECK(taken.observation_sequence > last);
            last = taken.observation_sequence;
            for (int k = 0; k < 300; k++)
                CHECK(taken.actions[k] == (float)last);
        } else if (result == RING_TORN && reader.next == shared_load(&reader.ring->written) &&
                   reader.next >= (uint64_t)chunks) {
            break; /* the last one was torn */
        }
    }
    pthread_join(writer, NULL);
    printf("%ld written, %ld whole, %ld torn, %llu overwritten\n", chunks, whole, torn,
           (unsigned long long)reader.overwritten);
    shared_close(&writing);
    shared_close(&reading);
    return whole == 0;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    CHECK(shared_crc32("123456789", 9) == 0xcbf43926); /* the check value of CRC-32 */
    int failed =
        files(argv[1]) || claims(argv[1]) || shortened(argv[1]) || order(argv[1]) || damage(argv[1]) || shapes();
    return failed || racing(argv[1], argc > 2 ? atol(argv[2]) : 20000);
}
