/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for bytes on a virtual clock: the terminal is read only when bytes are there, and every wait ends in time. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static struct {
    int64_t now_ns, bytes_at_ns;
    int reads, asks;
    long longest_pause_ns;
    int ioctl_errno; /* 0: it works */
    ssize_t read_result;
    int read_errno;
} world;

static int fake_ioctl(int fd, unsigned long what, ...)
{
    (void)fd;
    (void)what;
    va_list more;
    va_start(more, what);
    int *there = va_arg(more, int *);
    va_end(more);
    world.asks++;
    world.now_ns += 1000;
    errno = world.ioctl_errno;
    *there = world.now_ns >= world.bytes_at_ns ? 5 : 0;
    return world.ioctl_errno != 0 ? -1 : 0;
}

static ssize_t fake_read(int fd, void *data, size_t bytes)
{
    (void)fd;
    (void)data;
    (void)bytes;
    world.reads++;
    errno = world.read_errno;
    return world.read_result;
}

static int fake_nanosleep(const struct timespec *pause, struct timespec *left)
{
    (void)left;
    if (pause->tv_sec != 0)
        return -1;
    world.now_ns += pause->tv_nsec + 50000; /* the timer's slack */
    world.longest_pause_ns = pause->tv_nsec > world.longest_pause_ns ? pause->tv_nsec : world.longest_pause_ns;
    return 0;
}

static int fake_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    *now = (struct timespec){.tv_sec = world.now_ns / 1000000000, .tv_nsec = world.now_ns % 1000000000};
    return 0;
}

#define ioctl fake_ioctl
#define read fake_read
#define nanosleep fake_nanosleep
#define clock_gettime fake_clock_gettime
#include "check.h"
#include "serial.c"

enum { MS = 1000000 };

static serial_result wait(int64_t bytes_at_ns, int64_t deadline_ns, size_t *got)
{
    uint8_t data[8];
    world.now_ns = 10 * MS;
    world.bytes_at_ns = bytes_at_ns;
    world.reads = world.asks = 0;
    world.longest_pause_ns = 0;
    return serial_receive(3, data, sizeof data, deadline_ns, got);
}

int main(void)
{
    size_t got;
    world.read_result = 5;
    CHECK(wait(99 * MS, 18 * MS, &got) == SERIAL_TIMEOUT && got == 0); /* nothing comes: `read` is never called */
    CHECK(world.reads == 0 && world.asks > 40 && world.longest_pause_ns <= 100000);
    CHECK(world.now_ns <= 18 * MS);
    CHECK(wait(12 * MS, 18 * MS, &got) == SERIAL_OK && got == 5 && world.reads == 1);
    CHECK(world.now_ns - 12 * MS <= 160000); /* an asking and the slack */
    CHECK(wait(5 * MS, 0, &got) == SERIAL_OK && world.asks == 1); /* a passed deadline takes what is there */
    CHECK(wait(99 * MS, 0, &got) == SERIAL_TIMEOUT && world.asks == 1 && world.reads == 0);
    world.read_result = 0; /* the end of the file: the other side is gone */
    CHECK(wait(5 * MS, 18 * MS, &got) == SERIAL_UNPLUGGED);
    world.read_result = -1;
    world.read_errno = EIO;
    CHECK(wait(5 * MS, 18 * MS, &got) == SERIAL_UNPLUGGED);
    world.read_errno = EAGAIN; /* somebody else took them: go on waiting */
    CHECK(wait(5 * MS, 18 * MS, &got) == SERIAL_TIMEOUT && world.now_ns <= 18 * MS);
    world.ioctl_errno = EIO;
    CHECK(wait(5 * MS, 18 * MS, &got) == SERIAL_UNPLUGGED);
    return 0;
}
