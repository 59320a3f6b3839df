/* SPDX-License-Identifier: Apache-2.0 */
/* The watchdog of an arm whose servos have none: a second process on the same
 * port that stops the arm where it stands when control falls silent.
 *
 * Two writers, one line: whoever uses it holds the claim, a word in memory that
 * both map. Control takes it for each call and gives it back; the guardian takes
 * it when control made no call for 150 ms (two ticks, where those are longer), or
 * at once when control is dead, also out of a call that control was stopped in. Then it reads where the arm stands,
 * makes that the goals, reads them back, and says them again and again, as a
 * packet of the stopped call may still go out. Control takes the claim back with
 * its first call after that: goals are refused and the servos count as stopped by
 * their watchdog until they were led to where the arm stands, which is a latched
 * fault. They count so too when control itself finds that it was away for as long,
 * with the machine suspended or the guardian gone. An arm that control does not
 * hold under torque is left alone.
 *
 * The guardian notes the time of each look. One that has not looked for half a
 * second is told of by the port's `guarded`: control then holds and is not armed.
 * A line that it died on is control's after two seconds.
 */
#pragma once

#include "arm.h"
#include "clock.h"

#include <sys/types.h>

#define GUARDIAN_SILENCE_NS 150000000LL
#define GUARDIAN_LOOK_NS 10000000LL
#define GUARDIAN_GONE_NS 500000000LL

/* All zero at the start. */
typedef struct {
    uint64_t owner;    /* who uses the line */
    uint64_t silence_ns;
    uint64_t until_ns; /* CLOCK_MONOTONIC: when control's last call on it ends at the latest */
    uint64_t driven;   /* control has switched torque on and not off since */
    uint64_t seen_ns;  /* CLOCK_MONOTONIC: the guardian's newest look */
} guardian_claim;

/* Control's side: an arm behind the claim. */
typedef struct {
    const arm_port *arm;
    guardian_claim *claim;
    int64_t (*boot_ns)(void); /* the clock that goes on while the machine is suspended */
    int64_t last_ns;          /* on it: the end of the last call, 0: none yet */
    bool stopped; /* the arm was held, or control was away, and the goals are not led to where the arm stands yet */
} guarded_arm;

/* `self` and `arm` outlive the port. period_ns: from tick to tick. */
arm_port guarded_port(guarded_arm *self, const arm_port *arm, guardian_claim *claim, int64_t period_ns);
/* Control ends in order: the guardian has nothing left to do. */
void guarded_close(guarded_arm *self);

/* The guardian's side. */
typedef struct {
    const arm_port *arm;
    guardian_claim *claim;
    bool known, held; /* where the arm stood; that its goals are there */
    int32_t goals[ARM_JOINTS_MAX];
    int64_t said_ns;
    int tries;
} guardian;

typedef enum {
    GUARDIAN_WATCHES,
    GUARDIAN_HELD, /* just now: the goals are where the arm stood */
    GUARDIAN_ENDS, /* control has closed, or is dead and the arm is held or cannot be */
} guardian_result;

/* One look. orphan: control is dead. */
guardian_result guardian_look(guardian *self, int64_t now_ns, bool orphan);
/* Looks every 10 ms for as long as there is nothing to tell; `control` is the parent of this process. */
guardian_result guardian_watch(guardian *self, pid_t control);
