/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* nanosleep */
#include "serial.h"

#include <asm/termbits.h> /* termios2: any baud rate; excludes <termios.h> */
#include <errno.h>
#include <fcntl.h>
#include <linux/serial.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

enum { PTY_MAJOR_FIRST = 136, PTY_MAJOR_LAST = 143 }; /* Linux: Documentation/admin-guide/devices.txt */

int64_t serial_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The named rates where there is one: programs that know no BOTHER then read the rate back correctly. */
static tcflag_t named_rate(unsigned baud)
{
    switch (baud) {
    case 9600: return B9600;
    case 57600: return B57600;
    case 115200: return B115200;
    case 1000000: return B1000000;
    case 2000000: return B2000000;
    case 3000000: return B3000000;
    case 4000000: return B4000000;
    default: return BOTHER;
    }
}

static int configure(int fd, unsigned baud)
{
    struct termios2 settings;
    if (ioctl(fd, TCGETS2, &settings) < 0)
        return -1;
    settings.c_iflag = 0;
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    settings.c_cflag = CS8 | CREAD | CLOCAL | named_rate(baud);
    settings.c_ispeed = baud;
    settings.c_ospeed = baud;
    settings.c_cc[VMIN] = 1; /* so that a non-blocking read tells "nothing yet" from "gone" */
    settings.c_cc[VTIME] = 0;
    if (ioctl(fd, TCSETS2, &settings) < 0 || ioctl(fd, TCGETS2, &settings) < 0)
        return -1;
    if (settings.c_ospeed != baud) {
        errno = EINVAL;
        return -1;
    }
    /* Adapters that know it hand over each byte at once; the others (pty, CDC-ACM) refuse and need nothing. */
    struct serial_struct line;
    if (ioctl(fd, TIOCGSERIAL, &line) == 0) {
        line.flags |= ASYNC_LOW_LATENCY;
        (void)ioctl(fd, TIOCSSERIAL, &line);
    }
    return 0;
}

/* Keeps programs out that do not ask for the lock. Not on a pseudo-terminal: its far end stays open when this process
 * dies, and with it the mark, which would lock out the restart. */
static int exclude_others(int fd)
{
    struct stat file;
    if (fstat(fd, &file) < 0)
        return -1;
    unsigned device = major(file.st_rdev);
    if (device >= PTY_MAJOR_FIRST && device <= PTY_MAJOR_LAST)
        return 0;
    return ioctl(fd, TIOCEXCL);
}

int serial_open(const char *path, unsigned baud)
{
    int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -1;
    struct termios2 probe;
    if (ioctl(fd, TCGETS2, &probe) < 0) {
        errno = ENOTTY;
    } else if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        errno = errno == EWOULDBLOCK ? EBUSY : errno;
    } else if (exclude_others(fd) == 0 && configure(fd, baud) == 0) {
        return fd;
    }
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

/* A wait ends late by the kernel's timer slack (50 us unless real-time): stop waiting that much earlier. */
static const int64_t WAKE_UP_NS = 100000;
static const int64_t ASK_EVERY_NS = 100000;

/* Waits until it is time to ask again; false: the deadline is too near for that. */
static bool pause_before(int64_t deadline_ns)
{
    int64_t left = deadline_ns - WAKE_UP_NS - serial_now_ns();
    if (left <= 0)
        return false;
    (void)nanosleep(&(struct timespec){.tv_nsec = left < ASK_EVERY_NS ? left : ASK_EVERY_NS}, NULL);
    return true;
}

serial_result serial_send(int fd, const uint8_t *data, size_t n, int64_t deadline_ns)
{
    size_t sent = 0;
    while (sent < n) {
        ssize_t count = write(fd, data + sent, n - sent);
        if (count > 0) {
            sent += (size_t)count;
            continue;
        }
        if (count < 0 && errno != EAGAIN && errno != EINTR)
            return SERIAL_UNPLUGGED;
        if (!pause_before(deadline_ns))
            return SERIAL_TIMEOUT;
    }
    return SERIAL_OK;
}

/* `read` and `poll` on a terminal without bytes wait for an ordinary kernel worker, whatever our priority: up to a
 * second beside a busy machine. Asking how many bytes there are does not. */
serial_result serial_receive(int fd, uint8_t *data, size_t capacity, int64_t deadline_ns, size_t *got)
{
    *got = 0;
    for (;;) {
        int there = 0;
        if (ioctl(fd, FIONREAD, &there) < 0)
            return SERIAL_UNPLUGGED;
        if (there > 0) {
            ssize_t count = read(fd, data, capacity);
            if (count > 0) {
                *got = (size_t)count;
                return SERIAL_OK;
            }
            if (count == 0 || (errno != EAGAIN && errno != EINTR))
                return SERIAL_UNPLUGGED;
        }
        if (!pause_before(deadline_ns))
            return SERIAL_TIMEOUT;
    }
}

serial_result serial_drop_input(int fd, int64_t deadline_ns)
{
    uint8_t bytes[256];
    for (;;) {
        size_t got;
        serial_result result = serial_receive(fd, bytes, sizeof bytes, 0, &got);
        if (result == SERIAL_UNPLUGGED)
            return result;
        if (got == 0)
            return SERIAL_OK;
        if (serial_now_ns() >= deadline_ns)
            return SERIAL_TIMEOUT;
    }
}
