/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A new file of `bytes` at `path`, whole from the moment it has the name. The descriptor, or -errno; -EEXIST: there is
 * one by now. */
static int create(const char *path, size_t bytes)
{
    char beside[4096];
    if (snprintf(beside, sizeof beside, "%s.%ld.new", path, (long)getpid()) >= (int)sizeof beside)
        return -ENAMETOOLONG;
    (void)unlink(beside); /* of a process of that number which died here */
    int fd = open(beside, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int failure = posix_fallocate(fd, 0, (off_t)bytes);
    if (failure == 0 && link(beside, path) != 0)
        failure = errno;
    (void)unlink(beside);
    if (failure == 0)
        return fd;
    close(fd);
    return -failure;
}

/* Takes the name from a file of another size; once, however many processes find it. */
static void retire(int fd, const char *path)
{
    struct stat ours, named;
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    while (fcntl(fd, F_OFD_SETLKW, &whole) != 0 && errno == EINTR)
        ;
    if (fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_dev == named.st_dev && ours.st_ino == named.st_ino)
        (void)unlink(path);
}

/* A descriptor of a file of `bytes` at `path`, or -errno. */
static int open_sized(const char *path, size_t bytes, bool writable)
{
    for (;;) {
        int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && !(writable && errno == ENOENT))
            return -errno;
        struct stat info;
        if (fd < 0)
            fd = create(path, bytes);
        else if (fstat(fd, &info) == 0 && info.st_size == (off_t)bytes)
            return fd;
        else if (writable)
            retire(fd, path);
        if (fd < 0 && fd != -EEXIST)
            return fd;
        if (fd >= 0)
            close(fd);
        if (!writable)
            return -EINVAL;
    }
}

int shared_open(shared_file *self, const char *path, size_t bytes, bool writable)
{
    memset(self, 0, sizeof *self);
    int fd = open_sized(path, bytes, writable);
    if (fd < 0)
        return -fd;
    int failure = 0;
    void *memory = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED)
        failure = errno;
    else
        *self = (shared_file){.memory = memory, .bytes = bytes, .writable = writable};
    close(fd);
    return failure;
}

int shared_open_marked(shared_file *self, const char *path, size_t bytes, bool writable, uint64_t mark)
{
    int failure = shared_open(self, path, bytes, writable);
    if (failure != 0)
        return failure;
    uint64_t *words = self->memory;
    if (writable) {
        shared_store(&words[1], bytes);
        shared_store(&words[0], mark);
        return 0;
    }
    uint64_t found = shared_load(&words[0]); /* 0: its writer has made it and marks it now */
    if (found == 0 || (found == mark && shared_load(&words[1]) == bytes))
        return 0;
    shared_close(self);
    return EINVAL;
}

int shared_open_any(shared_file *self, const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return errno;
    return info.st_size > 0 ? shared_open(self, path, (size_t)info.st_size, false) : EINVAL;
}

void shared_close(shared_file *self)
{
    if (self->memory != NULL)
        munmap(self->memory, self->bytes);
    self->memory = NULL;
}

void shared_seal(shared_file *self)
{
    if (mprotect(self->memory, self->bytes, PROT_READ) == 0)
        self->writable = false;
}

static const shared_file *guarded[SHARED_GUARDED_MAX];
static volatile sig_atomic_t damaged;
static struct sigaction before;
static uintptr_t page_bytes;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    uintptr_t page = (uintptr_t)info->si_addr & ~(page_bytes - 1);
    for (size_t i = 0; i < SHARED_GUARDED_MAX; i++) {
        const shared_file *file = guarded[i];
        bool ours =
            file != NULL && file->memory != NULL && (uintptr_t)info->si_addr - (uintptr_t)file->memory < file->bytes;
        if (ours && mmap((void *)page, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                         0) != MAP_FAILED) {
            damaged = 1;
            return;
        }
    }
    sigaction(SIGBUS, &before, NULL); /* not ours: it happens again, to whoever cares */
}

void shared_guard(const shared_file *const *files, size_t n)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    for (size_t i = 0; i < SHARED_GUARDED_MAX; i++)
        guarded[i] = i < n ? files[i] : NULL;
    damaged = 0;
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigaction(SIGBUS, &action, &before);
}

void shared_unguard(void)
{
    sigaction(SIGBUS, &before, NULL);
    memset(guarded, 0, sizeof guarded);
}

bool shared_damaged(void)
{
    return damaged != 0;
}

void shared_prefault(void *memory, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t at = 0; at < bytes; at += page)
        atomic_fetch_or_explicit((_Atomic uint32_t *)((char *)memory + at), 0, memory_order_relaxed);
}

void shared_put(uint32_t *shared, const void *from, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, (const char *)from + i * sizeof word, sizeof word);
        atomic_store_explicit((_Atomic uint32_t *)&shared[i], word, memory_order_release);
    }
}

void shared_get(void *to, const uint32_t *shared, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        uint32_t word = atomic_load_explicit((const _Atomic uint32_t *)&shared[i], memory_order_acquire);
        memcpy((char *)to + i * sizeof word, &word, sizeof word);
    }
}

uint64_t shared_load(const uint64_t *word)
{
    return atomic_load_explicit((const _Atomic uint64_t *)word, memory_order_acquire);
}

void shared_store(uint64_t *word, uint64_t value)
{
    atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_release);
}

void shared_write(shared_slot *slot, uint32_t *shared, const void *from, size_t words)
{
    uint64_t sequence = shared_load(&slot->sequence) | 1; /* a writer that died left it odd */
    shared_store(&slot->sequence, sequence);
    shared_put(shared, from, words);
    shared_store(&slot->sequence, sequence + 1);
}

bool shared_read(const shared_slot *slot, void *to, const uint32_t *shared, size_t words)
{
    uint64_t before = shared_load(&slot->sequence);
    if (before & 1)
        return false;
    shared_get(to, shared, words);
    return shared_load(&slot->sequence) == before;
}

uint32_t shared_crc32(const void *data, size_t bytes)
{
    static const uint32_t nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const uint8_t *byte = data;
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= byte[i];
        crc = (crc >> 4) ^ nibble[crc & 15];
        crc = (crc >> 4) ^ nibble[crc & 15];
    }
    return ~crc;
}
