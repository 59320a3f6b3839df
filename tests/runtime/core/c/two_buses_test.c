/* SPDX-License-Identifier: Apache-2.0 */
/* An arm on two buses whose ids are the same, on a virtual clock: every question is out before an answer is read, no
 * side answers for the other, and what one side loses the arm has lost. */
#include "check.h"
#include "serial.h"
#include "servo_setup.h"

#include <string.h>

enum { LEFT = 7, RIGHT = 8, SERVOS = 3, MS = 1000000, STEPS = 64 };

static struct {
    int64_t now_ns;
    int side[STEPS],
        n; /* what happened on the lines, in order: a port for a question, minus a port for a wait for an answer */
    bool silent[2], gone[2];
    uint8_t alert[2];
    uint8_t answer[2][2 * PACKET_MAX];
    size_t left[2];
    int32_t goals[2][SERVOS];
} world;

int64_t serial_now_ns(void)
{
    return world.now_ns;
}

serial_result serial_drop_input(int fd, int64_t deadline_ns)
{
    (void)deadline_ns;
    world.left[fd - LEFT] = 0;
    return world.gone[fd - LEFT] ? SERIAL_UNPLUGGED : SERIAL_OK;
}

/* Position of servo `id` on each side. */
static int32_t place(int k, int id)
{
    return 1000 * (k + 1) + id;
}

serial_result serial_send(int fd, const uint8_t *data, size_t n, int64_t deadline_ns)
{
    (void)n;
    (void)deadline_ns;
    int k = fd - LEFT;
    world.side[world.n++ % STEPS] = fd;
    if (data[7] == INSTRUCTION_SYNC_WRITE)
        for (int i = 0; i < SERVOS; i++)
            memcpy(&world.goals[k][i], data + 12 + i * 5 + 1, 4);
    if (data[7] != INSTRUCTION_SYNC_READ || world.silent[k])
        return SERIAL_OK;
    uint16_t address = (uint16_t)(data[8] | data[9] << 8), length = (uint16_t)(data[10] | data[11] << 8);
    for (int i = 0; i < SERVOS; i++) {
        uint8_t parameters[1 + 40] = {world.alert[k]};
        int32_t position = place(k, data[12 + i]);
        memcpy(parameters + 1 + (132 - address), &position, 4);
        world.left[k] += dynamixel2.encode(world.answer[k] + world.left[k], data[12 + i], INSTRUCTION_STATUS,
                                           parameters, (size_t)length + 1);
    }
    return SERIAL_OK;
}

serial_result serial_receive(int fd, uint8_t *data, size_t capacity, int64_t deadline_ns, size_t *got)
{
    int k = fd - LEFT;
    if (deadline_ns > 0)
        world.side[world.n++ % STEPS] = -fd;
    *got = world.left[k] < capacity ? world.left[k] : capacity;
    memcpy(data, world.answer[k], *got);
    world.left[k] = 0;
    if (*got == 0 && world.now_ns < deadline_ns)
        world.now_ns = deadline_ns;
    return *got > 0 ? SERIAL_OK : SERIAL_TIMEOUT;
}

static const servo_arm_description TWO = {X330, .joints = 2 * SERVOS, .second = SERVOS, .ids = {1, 2, 3, 1, 2, 3}};

static servo_arm arm;
static arm_port port;

static void start(void)
{
    memset(&world, 0, sizeof world);
    world.now_ns = 1000 * (int64_t)MS;
    servo_arm_init(&arm, (int[]){LEFT, RIGHT}, &TWO);
    port = servo_arm_port(&arm);
}

static arm_result read_now(arm_reading *reading)
{
    world.n = 0;
    return port.read(port.context, world.now_ns + 8 * MS, reading);
}

static int both_are_asked_before_either_answers(void)
{
    start();
    arm_reading reading;
    for (int turn = 0; turn < 4; turn++) {
        CHECK(read_now(&reading) == ARM_OK);
        CHECK(world.side[0] == LEFT && world.side[1] == RIGHT && world.side[2] == -LEFT);
        for (int i = 0; i < 2 * SERVOS; i++)
            CHECK(reading.position[i] == place(i / SERVOS, i % SERVOS + 1));
    }
    return 0;
}

static int goals_go_to_the_side_that_they_are_for(void)
{
    start();
    int32_t goals[ARM_JOINTS_MAX] = {11, 12, 13, 21, 22, 23};
    CHECK(port.write_goals(port.context, goals, world.now_ns + MS) == ARM_OK);
    CHECK(memcmp(world.goals[0], goals, sizeof world.goals[0]) == 0);
    CHECK(memcmp(world.goals[1], goals + SERVOS, sizeof world.goals[1]) == 0);
    world.gone[0] = true;
    goals[3] = 31;
    CHECK(port.write_goals(port.context, goals, world.now_ns + MS) == ARM_UNPLUGGED);
    CHECK(world.goals[1][0] == 31); /* the side that is left is still told */
    return 0;
}

static int what_one_side_loses_the_arm_has_lost(void)
{
    for (int k = 0; k < 2; k++) {
        start();
        arm_reading reading = {.time_ns = 5};
        int64_t before_ns = world.now_ns;
        world.silent[k] = true;
        CHECK(read_now(&reading) == ARM_TIMEOUT && reading.time_ns == 5);
        CHECK(world.now_ns == before_ns + 8 * MS);         /* one deadline for both */
        CHECK(port.trouble->joint == k * SERVOS);          /* the silent side, by its first joint */
        CHECK(world.side[0] == LEFT && world.side[1] == RIGHT);
        world.silent[k] = false;
        CHECK(read_now(&reading) == ARM_OK);
        for (int i = 0; i < 2 * SERVOS; i++)
            CHECK(reading.position[i] == place(i / SERVOS, i % SERVOS + 1)); /* asked from the other end now */
        world.gone[k] = true;
        CHECK(read_now(&reading) == ARM_UNPLUGGED);
    }
    return 0;
}

static int an_alert_on_either_side_is_the_arms(void)
{
    for (int k = 0; k < 2; k++) {
        start();
        arm_reading reading;
        world.alert[k] = 0x80;
        CHECK(read_now(&reading) == ARM_ALERT);
        for (int i = 0; i < 2 * SERVOS; i++)
            CHECK(reading.alert[i] == (i / SERVOS == k));
    }
    return 0;
}

int main(void)
{
    return both_are_asked_before_either_answers() || goals_go_to_the_side_that_they_are_for() ||
           what_one_side_loses_the_arm_has_lost() || an_alert_on_either_side_is_the_arms();
}
