/* SPDX-License-Identifier: Apache-2.0 */
/* The guardian and control on one claim and a virtual clock, the arm a servo that follows its goal at 1 count a ms. */
#include "check.h"
#include "guardian.h"

#include <string.h>

enum { MS = 1000000, START = 2000, FAR = 3000, SPEED = 1, STALE = 1777 };

/* One arm, two ports on it: who = 0 is control, 1 the guardian. */
static struct {
    int64_t now_ms, moved_ms, suspended_ms;
    int32_t present, goal;
    int reads[2], writes[2], torques, talking;
    arm_result answer;                /* of every call */
    void (*meanwhile)(void);          /* once, in the middle of control's next call */
} world;
static const int WHO[2] = {0, 1};
static guardian_claim claim;
static guarded_arm guarded;
static guardian watcher;
static arm_port bare[2], port;

static void run_ms(int ms)
{
    for (int i = 0; i < ms; i++) {
        world.now_ms++;
        int32_t before = world.present, gap = world.goal - world.present;
        world.present += gap > SPEED ? SPEED : gap < -SPEED ? -SPEED : gap;
        if (world.present != before)
            world.moved_ms = world.now_ms;
    }
}

static void interrupted_here(void)
{
    void (*meanwhile)(void) = world.meanwhile;
    world.meanwhile = NULL;
    if (meanwhile != NULL)
        meanwhile();
}

static arm_result arm_read(void *context, int64_t deadline_ns, arm_reading *out)
{
    (void)deadline_ns;
    world.reads[*(const int *)context]++;
    interrupted_here();
    if (world.answer != ARM_OK)
        return world.answer;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < JOINTS; i++)
        out->position[i] = world.present + i;
    return ARM_OK;
}

static arm_result arm_write(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)deadline_ns;
    interrupted_here();
    world.writes[*(const int *)context]++;
    world.goal = goals[0];
    return ARM_OK;
}

static arm_result arm_torque(void *context, bool on, const int32_t *goals, int64_t deadline_ns)
{
    (void)context, (void)on, (void)goals, (void)deadline_ns;
    world.torques++;
    return world.answer;
}

static arm_result arm_check(void *context, int64_t deadline_ns)
{
    (void)context, (void)deadline_ns;
    return ARM_OK;
}

static arm_result arm_clear(void *context, const int32_t *goals, int64_t deadline_ns)
{
    arm_result result = arm_write(context, goals, deadline_ns);
    return world.answer != ARM_OK ? world.answer : result;
}

static arm_result arm_health_of(void *context, int64_t deadline_ns, arm_health *out)
{
    (void)context, (void)deadline_ns;
    out->part = HEALTH_SUPPLY;
    return world.answer;
}

static arm_result arm_reboot(void *context, uint32_t joints, int64_t deadline_ns)
{
    (void)context, (void)joints, (void)deadline_ns;
    return ARM_OK;
}

static int64_t now_ns(void)
{
    return world.now_ms * MS;
}

static int64_t boot_ns(void)
{
    return (world.now_ms + world.suspended_ms) * MS;
}

static int64_t soon_ns(void)
{
    return now_ns() + 8 * MS;
}

static void begin(void)
{
    memset(&world, 0, sizeof world);
    memset(&claim, 0, sizeof claim);
    world.now_ms = 1000;
    world.present = world.goal = START;
    for (int i = 0; i < 2; i++)
        bare[i] = (arm_port){.context = (void *)(uintptr_t)&WHO[i],
                             .joints = JOINTS,
                             .read = arm_read,
                             .write_goals = arm_write,
                             .set_torque = arm_torque,
                             .check_watchdog = arm_check,
                             .clear_watchdog = arm_clear,
                             .health = arm_health_of,
                             .reboot = arm_reboot};
    port = guarded_port(&guarded, &bare[0], &claim, 10 * MS);
    guarded.boot_ns = boot_ns;
    watcher = (guardian){.arm = &bare[1], .claim = &claim};
}

/* Control's ticks every 10 ms towards a goal far away, the guardian's looks between them. */
static int drive(int ticks)
{
    int32_t goals[JOINTS] = {FAR, FAR, FAR, FAR, FAR, FAR};
    for (int i = 0; i < ticks; i++) {
        arm_reading reading;
        CHECK(port.read(port.context, soon_ns(), &reading) == ARM_OK && reading.position[5] == world.present + 5);
        CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_OK);
        run_ms(5);
        CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES);
        run_ms(5);
    }
    return 0;
}

static int arm_it(void)
{
    CHECK(port.set_torque(port.context, true, NULL, soon_ns()) == ARM_OK);
    return drive(20);
}

static int a_killed_control_stands_still_within_250_ms(void)
{
    for (int killed_in = 0; killed_in < 2; killed_in++) {
        begin();
        CHECK(arm_it() == 0);
        if (killed_in)
            claim.owner = 1; /* in the middle of a call */
        int64_t killed_ms = world.now_ms, before = world.present;
        run_ms(9);
        CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_HELD);
        CHECK(world.goal == world.present && world.present - before <= 10);
        run_ms(1000);
        CHECK(world.moved_ms - killed_ms <= 250 && world.present - before <= 10);
        CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_ENDS);
    }
    return 0;
}

static int a_silent_control_is_taken_over_after_150_ms_and_not_before(void)
{
    begin();
    CHECK(arm_it() == 0);
    int64_t until_ms = (int64_t)claim.until_ns / MS;
    while (world.now_ms < until_ms + 150) {
        CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES && world.writes[1] == 0);
        run_ms(1);
    }
    run_ms(1);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_HELD);
    int32_t stood = world.goal;
    CHECK(stood == world.present);
    /* The same goals again and again: where it stood, not where it has sunk to since. */
    world.present -= 3;
    CHECK(guardian_look(&watcher, now_ns() + 50 * MS, false) == GUARDIAN_WATCHES && world.writes[1] == 1);
    world.goal = STALE;
    run_ms(101);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES && world.writes[1] == 2 && world.goal == stood);
    CHECK(world.reads[1] == 1);
    return 0;
}

static int control_that_wakes_up_finds_its_servos_stopped(void)
{
    int32_t goals[JOINTS] = {FAR, FAR, FAR, FAR, FAR, FAR};
    arm_reading reading;
    begin();
    CHECK(arm_it() == 0);
    run_ms(200);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_HELD);
    int32_t stood = world.goal;
    int sent = world.writes[0];
    CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT && world.writes[0] == sent);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG);
    CHECK(port.read(port.context, soon_ns(), &reading) == ARM_OK);
    CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT && world.goal == stood);
    /* The line is control's again: the guardian is silent, also long after. */
    CHECK(guardian_look(&watcher, now_ns() + 100 * MS, false) == GUARDIAN_WATCHES && world.writes[1] == 1);
    world.answer = ARM_CORRUPT;
    CHECK(port.clear_watchdog(port.context, reading.position, soon_ns()) == ARM_CORRUPT);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG); /* still */
    world.answer = ARM_OK;
    CHECK(port.clear_watchdog(port.context, reading.position, soon_ns()) == ARM_OK);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_OK);
    CHECK(drive(3) == 0 && world.goal == FAR);
    /* Or the next torque switch leads the goals. */
    run_ms(200);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_HELD);
    CHECK(port.set_torque(port.context, true, NULL, soon_ns()) == ARM_OK && drive(3) == 0);
    return 0;
}

static void the_guardian_takes_over(void)
{
    run_ms(200);
    (void)guardian_look(&watcher, now_ns(), false);
}

static int what_control_was_stopped_in_counts_for_nothing(void)
{
    int32_t goals[JOINTS] = {FAR, FAR, FAR, FAR, FAR, FAR};
    arm_reading reading = {.time_ns = 42};
    arm_health told = {.part = HEALTH_NONE};
    begin();
    CHECK(arm_it() == 0);
    world.meanwhile = the_guardian_takes_over;
    CHECK(port.read(port.context, soon_ns(), &reading) == ARM_TIMEOUT && reading.time_ns == 42);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG);
    CHECK(port.clear_watchdog(port.context, goals, soon_ns()) == ARM_OK);
    /* Its packet goes out when it wakes up; the guardian says its own goals again, then control is told. */
    world.meanwhile = the_guardian_takes_over;
    CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT && world.goal == FAR);
    run_ms(101);
    (void)guardian_look(&watcher, now_ns(), false);
    CHECK(world.goal == watcher.goals[0] && world.goal != FAR);
    CHECK(port.health(port.context, soon_ns(), &told) == ARM_OK && told.part == HEALTH_SUPPLY);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG);
    return 0;
}

static int a_control_that_was_away_is_stopped_also_without_the_guardian(void)
{
    int32_t goals[JOINTS] = {FAR, FAR, FAR, FAR, FAR, FAR};
    arm_reading reading;
    begin();
    world.suspended_ms = 60000; /* before torque that is nothing */
    CHECK(arm_it() == 0);
    world.suspended_ms += 60000; /* the lid was closed: the other clock stood */
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG);
    CHECK(port.read(port.context, soon_ns(), &reading) == ARM_OK);
    CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT);
    CHECK(port.clear_watchdog(port.context, reading.position, soon_ns()) == ARM_OK && drive(3) == 0);
    run_ms(151); /* nobody looked meanwhile: the guardian was killed */
    CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT);
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG);
    return 0;
}

static int slow_ticks_are_not_silence(void)
{
    begin();
    port = guarded_port(&guarded, &bare[0], &claim, 166 * MS);
    guarded.boot_ns = boot_ns;
    CHECK(port.set_torque(port.context, true, NULL, soon_ns()) == ARM_OK);
    int32_t goals[JOINTS] = {FAR, FAR, FAR, FAR, FAR, FAR};
    for (int i = 0; i < 5; i++) {
        run_ms(166 + 100);
        CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES);
        CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_OK);
    }
    run_ms(8 + 2 * 166 + 1);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_HELD);
    return 0;
}

static void control_calls(void)
{
    /* The guardian talks just now: no call of control touches the line. */
    arm_reading reading;
    arm_health told;
    int32_t goals[JOINTS] = {0};
    int reads = world.reads[0], writes = world.writes[0], torques = world.torques;
    bool none = port.read(port.context, soon_ns(), &reading) == ARM_TIMEOUT &&
                port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT &&
                port.set_torque(port.context, false, NULL, soon_ns()) == ARM_TIMEOUT &&
                port.check_watchdog(port.context, soon_ns()) == ARM_TIMEOUT &&
                port.clear_watchdog(port.context, goals, soon_ns()) == ARM_TIMEOUT &&
                port.health(port.context, soon_ns(), &told) == ARM_TIMEOUT &&
                port.reboot(port.context, 1, soon_ns()) == ARM_TIMEOUT;
    world.talking = none && reads == world.reads[0] && writes == world.writes[0] && torques == world.torques;
}

static int nobody_speaks_while_the_other_does(void)
{
    begin();
    CHECK(arm_it() == 0);
    run_ms(200);
    world.meanwhile = control_calls;
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_HELD && world.talking);
    return 0;
}

static int lost_answers_are_asked_for_again(void)
{
    begin();
    CHECK(arm_it() == 0);
    world.answer = ARM_CORRUPT;
    for (int i = 0; i < 99; i++)
        CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_WATCHES && world.reads[1] == i + 1);
    world.answer = ARM_OK;
    CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_HELD &&
          guardian_look(&watcher, now_ns(), true) == GUARDIAN_ENDS);
    begin();
    CHECK(arm_it() == 0);
    world.answer = ARM_TIMEOUT;
    for (int i = 0; i < 99; i++)
        CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_WATCHES);
    CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_ENDS);
    begin();
    CHECK(arm_it() == 0);
    world.answer = ARM_UNPLUGGED;
    CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_ENDS);
    return 0;
}

static int control_knows_whether_the_guardian_looks(void)
{
    int32_t goals[JOINTS] = {FAR, FAR, FAR, FAR, FAR, FAR};
    arm_reading reading;
    begin();
    CHECK(!port.guarded(port.context, now_ns())); /* not before its first look */
    CHECK(arm_it() == 0 && port.guarded(port.context, now_ns()));
    run_ms(494);
    CHECK(port.guarded(port.context, now_ns()));
    run_ms(1);
    CHECK(!port.guarded(port.context, now_ns()));
    (void)guardian_look(&watcher, now_ns(), false); /* it was only stopped */
    CHECK(port.guarded(port.context, now_ns()));
    claim.owner = 3; /* killed while it spoke */
    run_ms(1000);
    CHECK(port.read(port.context, now_ns() + 1000 * MS, &reading) == ARM_TIMEOUT); /* the longest call's deadline */
    run_ms(1000);
    CHECK(port.read(port.context, soon_ns(), &reading) == ARM_OK);
    CHECK(port.write_goals(port.context, goals, soon_ns()) == ARM_TIMEOUT); /* what it said last is not known */
    CHECK(port.check_watchdog(port.context, soon_ns()) == ARM_WATCHDOG);
    CHECK(port.clear_watchdog(port.context, reading.position, soon_ns()) == ARM_OK && world.goal == world.present);
    return 0;
}

static int an_arm_that_control_does_not_drive_is_left_alone(void)
{
    begin();
    run_ms(1000);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES);
    CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_ENDS);
    CHECK(arm_it() == 0 && port.set_torque(port.context, false, NULL, soon_ns()) == ARM_OK);
    CHECK(port.reboot(port.context, 1, soon_ns()) == ARM_OK);
    run_ms(1000);
    CHECK(guardian_look(&watcher, now_ns(), false) == GUARDIAN_WATCHES && world.writes[1] == 0);
    CHECK(arm_it() == 0);
    guarded_close(&guarded);
    CHECK(guardian_look(&watcher, now_ns(), true) == GUARDIAN_ENDS && world.writes[1] == 0);
    return 0;
}

int main(void)
{
    return a_killed_control_stands_still_within_250_ms() || a_silent_control_is_taken_over_after_150_ms_and_not_before()
        || control_that_wakes_up_finds_its_servos_stopped() || what_control_was_stopped_in_counts_for_nothing()
        || a_control_that_was_away_is_stopped_also_without_the_guardian() || slow_ticks_are_not_silence()
        || nobody_speaks_while_the_other_does() || lost_answers_are_asked_for_again()
        || control_knows_whether_the_guardian_looks() || an_arm_that_control_does_not_drive_is_left_alone();
}
