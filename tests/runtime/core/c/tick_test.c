/* SPDX-License-Identifier: Apache-2.0 */
/* The whole loop on an arm in memory: no allocation and no page fault in the tick after warm-up (R4), chunks included.
 *
 * tick_test FOLDER: for the loop's files, in memory where page faults shall count.
 */
#define _GNU_SOURCE
#include "loop_setup.h"

#include <sys/resource.h>

static int counting;
static long allocations;

#ifndef SANITIZED /* a sanitizer has an allocator of its own, and touches pages of its own */
/* These stand before the C library's own, for its internal callers too. */
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t n, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);

void *malloc(size_t bytes)
{
    allocations += counting;
    return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
    allocations += counting;
    return __libc_calloc(n, bytes);
}

void *realloc(void *old, size_t bytes)
{
    allocations += counting;
    return __libc_realloc(old, bytes);
}
#endif

enum { TICKS = 400, WARM = 20 };

static struct {
    int32_t position[JOINTS];
    long reads, writes, torque;
    long faults_at_start, faults;
    shared_file ring;
    chunk chunk;
} arm;

static long page_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt + usage.ru_majflt;
}

/* A new chunk every 20 ticks, as inference would write it. */
static void plan(int64_t tick, int64_t time_ns)
{
    arm.chunk = chunk_of(50, tick + 1, tick, time_ns);
    for (int i = 0; i < 50 * JOINTS; i++)
        arm.chunk.actions[i] = (float)(2000 + (tick + i / JOINTS) % 100);
    ring_write(arm.ring.memory, &arm.chunk);
}

static arm_result read_arm(void *context, int64_t deadline_ns, arm_reading *out)
{
    (void)context;
    (void)deadline_ns;
    long tick = arm.reads++;
    if (tick == WARM) {
        arm.faults_at_start = page_faults();
        counting = 1;
    }
    if (tick == TICKS) {
        counting = 0;
        arm.faults = page_faults() - arm.faults_at_start;
    }
    if (tick % 37 == 36)
        return ARM_TIMEOUT;
    memset(out, 0, sizeof *out);
    out->time_ns = clock_now_ns();
    memcpy(out->position, arm.position, sizeof arm.position);
    if (tick > 3 && tick % 20 == 4)
        plan(tick, out->time_ns);
    return ARM_OK;
}

static arm_result write_goals(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)context;
    (void)deadline_ns;
    memcpy(arm.position, goals, sizeof arm.position);
    arm.writes++;
    return ARM_OK;
}

static arm_result set_torque(void *context, bool on, const int32_t *goals, int64_t deadline_ns)
{
    (void)context;
    (void)goals;
    (void)deadline_ns;
    arm.torque += on ? 1 : 100;
    return ARM_OK;
}

static arm_result fine(void *context, int64_t deadline_ns)
{
    (void)context;
    (void)deadline_ns;
    return ARM_OK;
}

static arm_result cleared(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)goals;
    return fine(context, deadline_ns);
}

static arm_result health(void *context, int64_t deadline_ns, arm_health *out)
{
    (void)context;
    (void)deadline_ns;
    out->part = out->part % (HEALTH_PARTS - 1) + 1;
    memset(out->torque, arm.torque != 0, sizeof out->torque);
    memcpy(out->goals, arm.position, sizeof out->goals);
    return ARM_OK;
}

int main(int argc, char **argv)
{
    static control loop;
    if (argc < 2)
        return 2;
    control_config config = {.pilot = plain_pilot(5000000, 2000000000),
                             .record_cells = 1 << 12,
                             .socket_fd = -1,
                             .signal_fd = -1,
                             .priority = 50,
                             .arm_at_start = true,
                             .stop_after_ticks = TICKS + 50};
    name_files(&config, argv[1]);
    if (ring_open(&arm.ring, config.ring_path, true) != 0)
        return 2;
    shared_prefault(arm.ring.memory, arm.ring.bytes);
    for (int i = 0; i < JOINTS; i++)
        arm.position[i] = 2000;
    arm_port port = {.joints = JOINTS,
                     .velocity_unit = 15.6,
                     .trouble = &no_trouble,
                     .read = read_arm,
                     .write_goals = write_goals,
                     .set_torque = set_torque,
                     .check_watchdog = fine,
                     .clear_watchdog = cleared,
                     .health = health};
    control_result result = control_run(&loop, &config, &port);
    printf("%ld reads, %ld writes, %ld allocations, %ld page faults, locked %d, %llu chunks taken, moving %llu\n",
           arm.reads, arm.writes, allocations, arm.faults, loop.status.locked,
           (unsigned long long)loop.status.chunk_verdicts[CHUNK_TAKEN], (unsigned long long)loop.status.moving_ticks);
    bool worked = result.exit == CONTROL_STOPPED && arm.torque == 1 && arm.writes > TICKS - 10
                  && loop.status.chunk_verdicts[CHUNK_TAKEN] > 15 && loop.status.moving_ticks > 300;
#ifdef SANITIZED
    return !worked;
#else
    return !worked || allocations != 0 || (loop.status.locked && arm.faults != 0);
#endif
}
