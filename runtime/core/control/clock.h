/* SPDX-License-Identifier: Apache-2.0 */
/* When ticks are due: tick k at t0 + k * T on CLOCK_MONOTONIC, absolute.
 *
 * A tick that is missed is skipped, never made up: after tick k ends at `now`,
 * the next one is the first whose time has not passed.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int64_t t0_ns;
    int64_t period_ns;
    int64_t tick;   /* the tick that runs or is waited for */
    int64_t missed; /* ticks skipped so far */
} tick_clock;

/* Pure. */
int64_t clock_due_ns(const tick_clock *self, int64_t tick);
/* Moves to the next tick, given the time at which the last one ended. Returns the ticks skipped. */
int64_t clock_advance(tick_clock *self, int64_t now_ns);

/* The machine's clocks. Boot time goes on while the machine is suspended, which stops the other one. */
int64_t clock_now_ns(void);
int64_t clock_boot_ns(void);
void clock_sleep_until(int64_t due_ns);

/* What the control loop takes its time from; tests give it another. */
typedef struct {
    int64_t (*now_ns)(void);
    int64_t (*boot_ns)(void);
    void (*sleep_until)(int64_t due_ns);
} clock_source;

/* What the machine granted: each is asked for, its absence is reported, not fatal. */
typedef struct {
    bool fifo;   /* SCHED_FIFO at `priority` */
    bool locked; /* mlockall: current and future pages */
} clock_class;

clock_class clock_ask_realtime(int priority);
void clock_leave_realtime(void);
