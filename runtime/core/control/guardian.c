/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* getppid */
#include "guardian.h"
#include "shared.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { OWNER_NOBODY, OWNER_CONTROL, OWNER_GUARDIAN, OWNER_GUARDIAN_TALKS, OWNER_CLOSED };
enum { TRIES = 100 };
static const int64_t read_ns = 8000000, goals_ns = 20000000, again_ns = 100000000;
static const int64_t dead_ns = 2000000000; /* beyond every deadline of control, and every talk of the guardian */

static bool change(guardian_claim *claim, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong((_Atomic uint64_t *)&claim->owner, &from, to);
}

/* False: the guardian is talking, the line is not ours for this call. */
static bool enter(guarded_arm *self, int64_t deadline_ns)
{
    guardian_claim *claim = self->claim;
    bool away = self->last_ns != 0 && self->boot_ns() - self->last_ns > (int64_t)claim->silence_ns;
    self->stopped = self->stopped || (away && shared_load(&claim->driven));
    shared_store(&claim->until_ns, (uint64_t)deadline_ns);
    if (change(claim, OWNER_NOBODY, OWNER_CONTROL))
        return true;
    bool died = deadline_ns - (int64_t)shared_load(&claim->seen_ns) > dead_ns;
    bool back =
        change(claim, OWNER_GUARDIAN, OWNER_CONTROL) || (died && change(claim, OWNER_GUARDIAN_TALKS, OWNER_CONTROL));
    self->stopped = self->stopped || back;
    return back;
}

/* What a call has found; nothing, when the guardian has taken the line out of it. */
static arm_result leave(guarded_arm *self, arm_result result)
{
    self->last_ns = self->boot_ns();
    return change(self->claim, OWNER_CONTROL, OWNER_NOBODY) ? result : ARM_TIMEOUT;
}

static arm_result read_arm(void *context, int64_t deadline_ns, arm_reading *out)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    arm_reading reading;
    arm_result result = leave(self, self->arm->read(self->arm->context, deadline_ns, &reading));
    if (result == ARM_OK || result == ARM_ALERT)
        *out = reading;
    return result;
}

static arm_result write_goals(void *context, const int32_t *goals, int64_t deadline_ns)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    return leave(self, self->stopped ? ARM_TIMEOUT : self->arm->write_goals(self->arm->context, goals, deadline_ns));
}

static arm_result set_torque(void *context, bool on, const int32_t *goals, int64_t deadline_ns)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    if (on)
        shared_store(&self->claim->driven, 1);
    arm_result result = leave(self, self->arm->set_torque(self->arm->context, on, goals, deadline_ns));
    if (result == ARM_OK) {
        shared_store(&self->claim->driven, on);
        self->stopped = false;
    }
    return result;
}

static arm_result check_watchdog(void *context, int64_t deadline_ns)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    return leave(self, self->stopped ? ARM_WATCHDOG : self->arm->check_watchdog(self->arm->context, deadline_ns));
}

static arm_result clear_watchdog(void *context, const int32_t *goals, int64_t deadline_ns)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    arm_result result = leave(self, self->arm->clear_watchdog(self->arm->context, goals, deadline_ns));
    self->stopped = self->stopped && result != ARM_OK;
    return result;
}

static arm_result health(void *context, int64_t deadline_ns, arm_health *out)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    arm_health found = *out;
    arm_result result = leave(self, self->arm->health(self->arm->context, deadline_ns, &found));
    if (result == ARM_OK)
        *out = found;
    return result;
}

static arm_result reboot(void *context, uint32_t joints, int64_t deadline_ns)
{
    guarded_arm *self = context;
    if (!enter(self, deadline_ns))
        return ARM_TIMEOUT;
    return leave(self, self->arm->reboot(self->arm->context, joints, deadline_ns));
}

static bool guarded(void *context, int64_t now_ns)
{
    const guarded_arm *self = context;
    return now_ns - (int64_t)shared_load(&self->claim->seen_ns) < GUARDIAN_GONE_NS;
}

arm_port guarded_port(guarded_arm *self, const arm_port *arm, guardian_claim *claim, int64_t period_ns)
{
    *self = (guarded_arm){.arm = arm, .claim = claim, .boot_ns = clock_boot_ns};
    claim->silence_ns = (uint64_t)(2 * period_ns > GUARDIAN_SILENCE_NS ? 2 * period_ns : GUARDIAN_SILENCE_NS);
    arm_port port = *arm; /* what it says of the arm, and its trouble, are the arm's */
    port.context = self;
    port.read = read_arm;
    port.write_goals = write_goals;
    port.set_torque = set_torque;
    port.check_watchdog = check_watchdog;
    port.clear_watchdog = clear_watchdog;
    port.health = health;
    port.reboot = reboot;
    port.guarded = guarded;
    return port;
}

void guarded_close(guarded_arm *self)
{
    shared_store(&self->claim->owner, OWNER_CLOSED);
}

/* One try to make the goals where the arm stood when it was first read. */
static arm_result hold(guardian *self, int64_t now_ns)
{
    arm_reading reading;
    arm_result result = ARM_OK;
    if (!self->known) {
        result = self->arm->read(self->arm->context, now_ns + read_ns, &reading);
        self->known = result == ARM_OK || result == ARM_ALERT;
        if (!self->known)
            return result;
        memcpy(self->goals, reading.position, sizeof self->goals);
    }
    return self->arm->clear_watchdog(self->arm->context, self->goals, now_ns + goals_ns);
}

guardian_result guardian_look(guardian *self, int64_t now_ns, bool orphan)
{
    guardian_claim *claim = self->claim;
    uint64_t owner = shared_load(&claim->owner);
    shared_store(&claim->seen_ns, (uint64_t)now_ns);
    if (owner == OWNER_CLOSED)
        return GUARDIAN_ENDS;
    if (owner == OWNER_GUARDIAN) {
        if (orphan && self->held)
            return GUARDIAN_ENDS;
        if (self->held && now_ns - self->said_ns < again_ns)
            return GUARDIAN_WATCHES;
    } else {
        bool silent = now_ns - (int64_t)shared_load(&claim->until_ns) > (int64_t)claim->silence_ns;
        if (!shared_load(&claim->driven))
            return orphan ? GUARDIAN_ENDS : GUARDIAN_WATCHES;
        if (!silent && !orphan)
            return GUARDIAN_WATCHES;
        self->known = self->held = false;
        self->tries = 0;
    }
    if (!change(claim, owner, OWNER_GUARDIAN_TALKS))
        return GUARDIAN_WATCHES; /* control was faster */
    bool held_before = self->held;
    arm_result result = hold(self, now_ns);
    self->held = self->held || result == ARM_OK;
    self->said_ns = now_ns;
    self->tries++;
    (void)change(claim, OWNER_GUARDIAN_TALKS, OWNER_GUARDIAN); /* unless control has closed meanwhile */
    if (self->held && !held_before)
        return GUARDIAN_HELD;
    bool hopeless = result == ARM_UNPLUGGED || self->tries >= TRIES;
    return orphan && !self->held && hopeless ? GUARDIAN_ENDS : GUARDIAN_WATCHES;
}

guardian_result guardian_watch(guardian *self, pid_t control)
{
    for (int64_t due_ns = clock_now_ns();; due_ns += GUARDIAN_LOOK_NS) {
        clock_sleep_until(due_ns);
        int64_t now_ns = clock_now_ns();
        guardian_result result = guardian_look(self, now_ns, getppid() != control);
        if (result != GUARDIAN_WATCHES)
            return result;
        if (now_ns - due_ns > GUARDIAN_LOOK_NS) /* looks that were missed are not made up for */
            due_ns = now_ns;
    }
}
