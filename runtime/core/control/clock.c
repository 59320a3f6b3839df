/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "clock.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

static const int64_t second_ns = 1000000000;

int64_t clock_due_ns(const tick_clock *self, int64_t tick)
{
    return self->t0_ns + tick * self->period_ns;
}

int64_t clock_advance(tick_clock *self, int64_t now_ns)
{
    int64_t next = self->tick + 1;
    int64_t skipped = 0;
    if (now_ns > clock_due_ns(self, next)) {
        int64_t passed = (now_ns - self->t0_ns) / self->period_ns; /* the last tick whose time has come */
        /* A tick whose period still runs is late, not missed: it starts at once. */
        skipped = passed > next ? passed - next : 0;
    }
    self->tick = next + skipped;
    self->missed += skipped;
    return skipped;
}

int64_t clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * second_ns + now.tv_nsec;
}

int64_t clock_boot_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * second_ns + now.tv_nsec;
}

void clock_sleep_until(int64_t due_ns)
{
    struct timespec due = {.tv_sec = due_ns / second_ns, .tv_nsec = due_ns % second_ns};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
        ;
}

clock_class clock_ask_realtime(int priority)
{
    struct sched_param parameter = {.sched_priority = priority};
    bool fifo = sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &parameter) == 0;
    return (clock_class){.fifo = fifo, .locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0};
}

void clock_leave_realtime(void)
{
    struct sched_param parameter = {.sched_priority = 0};
    sched_setscheduler(0, SCHED_OTHER, &parameter);
    munlockall();
}
