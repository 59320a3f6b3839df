/* SPDX-License-Identifier: Apache-2.0 */
/* The whole loop on a virtual clock with an arm in memory: a suspended machine, a deaf servo, budgets of the bus.
 *
 * loop_test FOLDER: for the loop's files.
 */
#define _GNU_SOURCE
#include "loop_setup.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

enum { MS = 1000000, TICKS = 60, EVENT = 30 };

static struct {
    int64_t now_ns, suspended_ns;
    int64_t suspend_ns; /* what the machine sleeps at tick EVENT */
    int64_t stop_ns;    /* what our process is stopped for then, the clocks going on */
    long silent_ticks;  /* for how many from then on no servo answers; after six their watchdogs have tripped */
    long held_after, latched_after; /* ticks of silence until readings lost were a hold, and until it latched */
    bool plans;         /* a chunk that leads far away is there when the servos fall silent */
    int64_t answer_ns;  /* what a reading takes */
    bool tripped, deaf, limp;
    int64_t park_after_ns;
    int interrupt_fd;                        /* a signal is written here at tick EVENT, 0: none */
    int32_t goal_before_end, reason_before_end, state_before_end;
    int32_t position[JOINTS], goals[JOINTS], cleared_to;
    long ticks, asked_health, late_health, checks, cleared, rebooted;
    bool torque;
} world;

static int64_t now_ns(void)
{
    return world.now_ns;
}

static int64_t boot_ns(void)
{
    return world.now_ns + world.suspended_ns;
}

static control loop;
static shared_file chunks;
static chunk plan;

static void write_plan(void)
{
    plan = chunk_of(60, 1, loop.clock.tick - 2, world.now_ns);
    for (int i = 0; i < 60 * JOINTS; i++)
        plan.actions[i] = 2900;
    ring_write(chunks.memory, &plan);
}

static void sleep_until(int64_t due_ns)
{
    world.now_ns = due_ns > world.now_ns ? due_ns : world.now_ns;
    world.ticks++;
    if (world.ticks == EVENT && world.interrupt_fd > 0 && write(world.interrupt_fd, &(char){SIGINT}, 1) != 1)
        abort();
    if (loop.clock.tick == TICKS - 2) {
        world.goal_before_end = world.goals[0];
        world.reason_before_end = (int32_t)loop.pilot.reason;
        world.state_before_end = (int32_t)loop.pilot.state;
    }
    if (world.ticks == EVENT - 1 && world.plans)
        write_plan();
    if (world.ticks == EVENT && world.stop_ns > 0) {
        world.now_ns += world.stop_ns;
        world.tripped = true;
    }
    if (loop.pilot.reason == REASON_READS_LOST && world.held_after == 0)
        world.held_after = world.ticks - EVENT;
    if (loop.pilot.latched && world.latched_after == 0)
        world.latched_after = world.ticks - EVENT;
    if (world.silent_ticks > 6 && world.ticks == EVENT + 6)
        world.tripped = true;
    if (world.ticks == EVENT && world.suspend_ns > 0) {
        world.suspended_ns += world.suspend_ns;
        world.tripped = true; /* the servos heard nothing */
    }
}

/* Lets the time pass that an answer takes, or what is left until the deadline. */
static bool answers_by(int64_t deadline_ns)
{
    bool silent = world.ticks >= EVENT && world.ticks < EVENT + world.silent_ticks;
    bool answers = !silent && world.now_ns + world.answer_ns <= deadline_ns;
    if (answers)
        world.now_ns += world.answer_ns;
    else if (world.now_ns < deadline_ns)
        world.now_ns = deadline_ns;
    return answers;
}

static arm_result read_arm(void *context, int64_t deadline_ns, arm_reading *out)
{
    (void)context;
    if (!answers_by(deadline_ns))
        return ARM_TIMEOUT;
    memset(out, 0, sizeof *out);
    out->time_ns = world.now_ns;
    memcpy(out->position, world.position, sizeof world.position);
    return ARM_OK;
}

static arm_result write_goals(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)context;
    (void)deadline_ns;
    if (!world.tripped)
        memcpy(world.goals, goals, sizeof world.goals);
    if (world.deaf)
        world.goals[3] = 1234;
    if (world.park_after_ns > 0)
        memcpy(world.position, goals, sizeof world.position);
    return ARM_OK;
}

static arm_result set_torque(void *context, bool on, const int32_t *goals, int64_t deadline_ns)
{
    (void)context;
    (void)goals;
    (void)deadline_ns;
    world.torque = on;
    return ARM_OK;
}

static arm_result check_watchdog(void *context, int64_t deadline_ns)
{
    (void)context;
    if (!answers_by(deadline_ns))
        return ARM_TIMEOUT;
    world.checks++;
    return world.tripped ? ARM_WATCHDOG : ARM_OK;
}

static arm_result clear_watchdog(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)context;
    (void)deadline_ns;
    memcpy(world.goals, goals, sizeof world.goals);
    world.cleared_to = goals[0];
    world.tripped = false;
    world.cleared++;
    return ARM_OK;
}

static arm_result health(void *context, int64_t deadline_ns, arm_health *out)
{
    (void)context;
    out->part = out->part % (HEALTH_PARTS - 1) + 1;
    memset(out->torque, world.torque, sizeof out->torque);
    if (world.limp)
        out->torque[1] = 0;
    memcpy(out->goals, world.goals, sizeof out->goals);
    memset(out->stopped, 0, sizeof out->stopped);
    world.asked_health++;
    world.now_ns += world.answer_ns;
    world.late_health += world.now_ns > deadline_ns;
    return ARM_OK;
}

static arm_result reboot(void *context, uint32_t joints, int64_t deadline_ns)
{
    (void)context;
    (void)joints;
    (void)deadline_ns;
    world.rebooted++;
    return ARM_OK;
}

static int signal_fd = -1;

static int fly(const char *folder, int64_t period_ns)
{
    control_config config = {.pilot = plain_pilot(period_ns, 200000000000),
                             .record_cells = 1 << 10,
                             .socket_fd = -1,
                             .signal_fd = signal_fd,
                             .arm_at_start = true,
                             .stop_after_ticks = TICKS,
                             .park_after_ns = world.park_after_ns,
                             .clock = {.now_ns = now_ns, .boot_ns = boot_ns, .sleep_until = sleep_until}};
    name_files(&config, folder);
    unlink(config.record_path);
    if (chunks.memory == NULL && ring_open(&chunks, config.ring_path, true) != 0)
        abort();
    config.pilot.has_park = world.park_after_ns > 0;
    config.pilot.park_speed = 4000;
    for (int i = 0; i < JOINTS; i++) {
        world.position[i] = 2000;
        config.pilot.park[i] = 2100;
    }
    world.now_ns = 1000 * (int64_t)MS;
    arm_port port = {.joints = JOINTS,
                     .velocity_unit = 15.6,
                     .trouble = &no_trouble,
                     .read = read_arm,
                     .write_goals = write_goals,
                     .set_torque = set_torque,
                     .check_watchdog = check_watchdog,
                     .clear_watchdog = clear_watchdog,
                     .health = health,
                     .reboot = reboot};
    return control_run(&loop, &config, &port).exit != CONTROL_STOPPED;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    world.answer_ns = 1 * MS;
    CHECK(fly(argv[1], 33333333) == 0 && loop.status.missed == 0 && world.checks == 0);
    CHECK(world.asked_health > TICKS - 5 && world.late_health == 0); /* one question more in each tick */
    CHECK(loop.status.state == PILOT_HOLD && loop.status.reason == REASON_OPERATOR);

    memset(&world, 0, sizeof world); /* the same at 90 Hz with an answer that control chooses that rate for */
    world.answer_ns = 2 * MS + MS / 4;
    CHECK(fly(argv[1], 11111111) == 0 && world.asked_health > TICKS - 5 && world.late_health == 0);
    CHECK(loop.status.lost_reads == 0 && loop.status.io_max_ns <= 11111111 / 2);

    memset(&world, 0, sizeof world); /* suspended for ten seconds: the monotonic clock shows no gap */
    world.answer_ns = 1 * MS;
    world.suspend_ns = 10000 * (int64_t)MS;
    CHECK(fly(argv[1], 33333333) == 0 && world.checks == 1 && world.cleared == 1);
    CHECK(loop.status.state == PILOT_FAULT && loop.status.reason == REASON_WATCHDOG && loop.status.latched);

    memset(&world, 0, sizeof world); /* stopped for 0.6 s: what was missed is skipped and counted, none is made up */
    world.answer_ns = 1 * MS;
    world.stop_ns = 600 * (int64_t)MS;
    CHECK(fly(argv[1], 33333333) == 0 && loop.status.missed == 17 &&
          loop.status.ticks + loop.status.missed == TICKS + 1);
    CHECK(world.state_before_end == PILOT_FAULT && world.reason_before_end == REASON_WATCHDOG && world.cleared == 1);

    /* A quarter of a second of silence costs no tick: the third lost reading holds, and it goes on by itself, also when
     * finding the tripped watchdogs takes a whole tick's reading. */
    for (int slow = 0; slow < 2; slow++) {
        memset(&world, 0, sizeof world);
        world.answer_ns = slow ? 4 * MS : 1 * MS;
        world.silent_ticks = 8;
        CHECK(fly(argv[1], 33333333) == 0 && loop.status.missed == 0 && world.held_after == 3 && world.cleared == 1);
        CHECK(world.state_before_end == PILOT_PLANNING && world.reason_before_end == REASON_NONE);
    }
    memset(&world, 0, sizeof world); /* the plan goes on from where the servos stand, which is their first goal */
    world.answer_ns = 1 * MS;
    world.silent_ticks = 8;
    world.plans = true;
    CHECK(fly(argv[1], 33333333) == 0 && world.cleared == 1 && world.cleared_to == world.position[0]);
    CHECK(world.state_before_end == PILOT_MOVING && world.goal_before_end > world.cleared_to);
    memset(&world, 0, sizeof world); /* half a second of it latches; the servos have stopped by then */
    world.answer_ns = 1 * MS;
    world.silent_ticks = 20;
    CHECK(fly(argv[1], 33333333) == 0 && loop.status.missed == 0 && world.held_after == 3 && world.latched_after == 17);
    CHECK(world.state_before_end == PILOT_FAULT && world.reason_before_end == REASON_WATCHDOG);
    memset(&world, 0, sizeof world); /* at 90 Hz as soon as the servos are asked again */
    world.answer_ns = 1 * MS;
    world.silent_ticks = 20;
    CHECK(fly(argv[1], 11111111) == 0 && loop.status.missed == 0 && world.state_before_end == PILOT_PLANNING);

    memset(&world, 0, sizeof world); /* no room for a second question within the tick: none is asked */
    world.answer_ns = 4 * MS;
    CHECK(fly(argv[1], 33333333) == 0 && world.asked_health == 0 && loop.status.lost_reads == 0);

    memset(&world, 0, sizeof world);
    world.answer_ns = 1 * MS;
    world.deaf = true;
    CHECK(fly(argv[1], 33333333) == 0 && loop.status.reason == REASON_DEAF && loop.status.joint == 3);

    memset(&world, 0, sizeof world);
    world.answer_ns = 1 * MS;
    world.limp = true;
    CHECK(fly(argv[1], 11111111) == 0 && loop.status.reason == REASON_TORQUE && loop.status.joint == 1);

    memset(&world, 0, sizeof world); /* nothing is planned for a second: the arm parks by itself */
    world.answer_ns = 1 * MS;
    world.park_after_ns = 1000 * (int64_t)MS;
    CHECK(fly(argv[1], 33333333) == 0 && world.goal_before_end == 2100 && world.reason_before_end == REASON_PARKED);

    memset(&world, 0, sizeof world); /* not where somebody told it to hold */
    world.answer_ns = 1 * MS;
    world.park_after_ns = 1100 * (int64_t)MS;
    int ends[2];
    CHECK(pipe2(ends, O_NONBLOCK) == 0);
    signal_fd = ends[0];
    world.interrupt_fd = ends[1];
    CHECK(fly(argv[1], 33333333) == 0 && world.goal_before_end == 2000 && world.reason_before_end == REASON_OPERATOR);
    return 0;
}
