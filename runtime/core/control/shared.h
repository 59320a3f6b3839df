/* SPDX-License-Identifier: Apache-2.0 */
/* Memory-mapped files with one writer and any number of readers.
 *
 * A slot is guarded by a sequence number that is odd while it is written. The
 * words of the data are themselves atomic (release stores, acquire loads): a
 * reader that sees one new word sees the odd number too, so a torn copy is
 * always noticed, without fences and without a data race. A CRC stands behind
 * it for writers that died in between and for damaged files.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    void *memory;
    size_t bytes;
    bool writable;
} shared_file;

/* Maps `bytes` of `path`; a writer creates it (mode 0600), also in the place of a file of another size, which is left
 * as it is for whoever has it mapped: cutting it short would kill them. All pages are faulted in. 0, or the errno of
 * what failed; EINVAL when a reader finds a file of another size. */
int shared_open(shared_file *self, const char *path, size_t bytes, bool writable);
/* The same with its mark and its size as the first two words of the file; EINVAL also when a reader finds others. A
 * file of zeros is taken: its writer is about to mark it. */
int shared_open_marked(shared_file *self, const char *path, size_t bytes, bool writable, uint64_t mark);
/* Maps a whole file of any size for reading. 0 or an errno. */
int shared_open_any(shared_file *self, const char *path);
void shared_close(shared_file *self);
/* From here on this process can only read it. */
void shared_seal(shared_file *self);

/* A page that is no longer behind one of these mappings, because somebody cut its file short, becomes an empty one
 * instead of killing the process; `shared_damaged` tells. For one process, until `shared_unguard`; `files` stay. */
enum { SHARED_GUARDED_MAX = 4 };
void shared_guard(const shared_file *const *files, size_t n);
void shared_unguard(void);
bool shared_damaged(void);

/* Touches every page of a mapping for writing, leaving its bytes as they are. */
void shared_prefault(void *memory, size_t bytes);

/* Word-wise atomic copies; `words` of 32 bits, both sides aligned to 4 bytes. */
void shared_put(uint32_t *shared, const void *from, size_t words);
void shared_get(void *to, const uint32_t *shared, size_t words);

/* One value behind a sequence number. `words` is its size / 4. */
typedef struct {
    uint64_t sequence;
} shared_slot;

void shared_write(shared_slot *slot, uint32_t *shared, const void *from, size_t words);
/* False when it was being written: try again. */
bool shared_read(const shared_slot *slot, void *to, const uint32_t *shared, size_t words);

uint64_t shared_load(const uint64_t *word);
void shared_store(uint64_t *word, uint64_t value);

/* CRC-32 (IEEE 802.3, reflected, polynomial 0xEDB88320), as zlib computes it. */
uint32_t shared_crc32(const void *data, size_t bytes);
