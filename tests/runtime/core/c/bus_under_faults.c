/* SPDX-License-Identifier: Apache-2.0 */
/* Talks to the bus of argv[3] in every way the driver can, whatever it answers, until argv[2] readings were accepted.
 *
 * Prints "realtime" when it may run so, one line per accepted reading ("reading START END six positions") and one per
 * call that ended after its deadline by its own doing ("late NAME MICROSECONDS": more than the scheduler kept it
 * waiting and a millisecond for its waking), then "done CALLS". Built with the sanitizers; the judge reads the output.
 */
#define _GNU_SOURCE /* sched_setscheduler, nanosleep */
#include "check.h"
#include "serial.h"
#include "servo_setup.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Written again and again: a light on one, the time a goal may take on the other. */
static const struct {
    const char *name;
    servo_register homing;
    uint16_t harmless;
    servo_arm_description is;
} ARMS[] = {
    {"koch", {20, 4, SIGN_TWOS}, 65, {X330, .joints = JOINTS, .second = JOINTS, .ids = {1, 2, 3, 4, 5, 6}}},
    {"so101", {31, 2, 11}, 44, {STS3215, .joints = JOINTS, .second = JOINTS, .ids = {1, 2, 3, 4, 5, 6}}},
};
static const int64_t BUDGET_NS = 8000000;
static const int64_t WAKE_NS = 1000000;
static int schedstat_fd = -1;
static int64_t waited_before_ns;

/* How long the scheduler has kept this thread waiting for a core so far. */
static int64_t waited_ns(void)
{
    char text[96] = "";
    int64_t waited = 0;
    if (pread(schedstat_fd, text, sizeof text - 1, 0) < 0 || sscanf(text, "%*d %" SCNd64, &waited) != 1)
        return 0;
    return waited;
}

static int64_t deadline(void)
{
    waited_before_ns = waited_ns();
    return serial_now_ns() + BUDGET_NS;
}

static void ended(const char *name, int64_t deadline_ns)
{
    int64_t over = serial_now_ns() - deadline_ns - (waited_ns() - waited_before_ns);
    if (over > WAKE_NS)
        printf("late %s %" PRId64 "\n", name, over / 1000);
}

static void slow_path(servo_arm *arm, servo_register homing, uint16_t harmless, unsigned call)
{
    uint8_t id = (uint8_t)(1 + call % JOINTS), data[BUS_READ_MAX], alert;
    uint16_t model, firmware;
    int64_t end = deadline();
    bus_registers one = {.ids = &id, .servos = 1, .address = homing.address, .length = homing.bytes};
    bus_result result = bus_sync_read(&arm->buses[0], &one, end, data, &alert);
    ended("read", end);
    if (result == BUS_OK)
        printf("homing %u %d\n", id, (int)servo_decode(homing, data));
    end = deadline();
    if (bus_ping(&arm->buses[0], id, end, &model, &firmware) == BUS_OK)
        printf("model %u %u\n", id, model);
    ended("ping", end);
    end = deadline();
    (void)bus_write(&arm->buses[0], id, harmless, (const uint8_t[]){(uint8_t)(call & 1)}, 1, end);
    ended("write", end);
}

int main(int argc, char **argv)
{
    size_t which = 0;
    while (argc == 4 && which < sizeof ARMS / sizeof ARMS[0] && strcmp(ARMS[which].name, argv[3]) != 0)
        which++;
    if (argc != 4 || which == sizeof ARMS / sizeof ARMS[0])
        return 2;
    int fd = serial_open(argv[1], 1000000);
    if (fd < 0) {
        perror(argv[1]);
        return 2;
    }
    if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 20}) == 0)
        printf("realtime\n");
    schedstat_fd = open("/proc/thread-self/schedstat", O_RDONLY);
    static servo_arm arm;
    servo_arm_init(&arm, &fd, &ARMS[which].is);
    arm_port port = servo_arm_port(&arm);
    for (int i = 0; i < 50 && port.set_torque(port.context, true, NULL, serial_now_ns() + 50000000) != ARM_OK; i++)
        ;
    unsigned calls = 0, accepted = 0, wanted = (unsigned)atoi(argv[2]);
    arm_reading reading;
    for (; accepted < wanted; calls++) {
        int64_t start = serial_now_ns(), end = deadline();
        arm_result result = port.read(port.context, end, &reading);
        ended("read_arm", end);
        if (result == ARM_OK) {
            accepted++;
            printf("reading %" PRId64 " %" PRId64, start, reading.time_ns);
            for (int i = 0; i < JOINTS; i++)
                printf(" %d", reading.position[i]);
            printf("\n");
        }
        int32_t goals[JOINTS]; /* always on the move, so that an old reading is a wrong one */
        for (int i = 0; i < JOINTS; i++)
            goals[i] = 2048 + (int)(calls % 200 < 100 ? 8 * (calls % 100) : 800 - 8 * (calls % 100));
        end = deadline();
        (void)port.write_goals(port.context, goals, end);
        ended("write_goals", end);
        if (calls % 16 == 0)
            slow_path(&arm, ARMS[which].homing, ARMS[which].harmless, calls / 16);
        if (calls % 64 == 0 && port.check_watchdog(port.context, deadline()) == ARM_WATCHDOG)
            (void)port.clear_watchdog(port.context, NULL, serial_now_ns() + 20000000);
        nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
    }
    (void)port.set_torque(port.context, false, NULL, serial_now_ns() + 50000000);
    printf("done %u\n", calls);
    return 0;
}
