/* SPDX-License-Identifier: Apache-2.0 */
/* A serial port on Linux: exclusive, raw, low latency, reads with a deadline. */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef enum { SERIAL_OK, SERIAL_TIMEOUT, SERIAL_UNPLUGGED } serial_result;

int64_t serial_now_ns(void); /* CLOCK_MONOTONIC */

/* Opens `path` for this process alone (flock; TIOCEXCL on real ports), 8N1 raw at `baud`.
 * Returns the descriptor, or -1 with errno: ENOENT, EACCES, ENOTTY (no serial
 * port), EBUSY (another process has it), EINVAL (the adapter cannot do `baud`). */
int serial_open(const char *path, unsigned baud);

/* All n bytes handed to the kernel, or not all before the deadline. */
serial_result serial_send(int fd, const uint8_t *data, size_t n, int64_t deadline_ns);

/* At least one byte into `data`; *got says how many. A passed deadline still takes what is there. */
serial_result serial_receive(int fd, uint8_t *data, size_t capacity, int64_t deadline_ns, size_t *got);

/* Drops what has arrived and was never asked for. */
serial_result serial_drop_input(int fd, int64_t deadline_ns);
