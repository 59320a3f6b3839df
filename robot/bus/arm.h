/* What the control loop asks of an arm. Every call ends before its deadline,
 * whatever the bus does; the caller owns every struct; nothing allocates. */
#ifndef VLA_ARM_H
#define VLA_ARM_H

#include <stdbool.h>
#include <stdint.h>

enum { ARM_JOINTS = 6 };

typedef enum { ARM_OK, ARM_TIMEOUT, ARM_CORRUPT, ARM_ALERT, ARM_WATCHDOG, ARM_UNPLUGGED, ARM_REBOOTED } arm_result;

typedef struct {
    int64_t time_ns;              /* CLOCK_MONOTONIC when the reply was complete */
    int32_t position[ARM_JOINTS]; /* counts */
    int32_t velocity[ARM_JOINTS]; /* servo units (0.229 rpm) */
    int16_t load[ARM_JOINTS];     /* 0.1 % on the XL430, mA on the XL330 */
    uint8_t alert[ARM_JOINTS];    /* hardware alert bit of the status packet */
} arm_reading;

typedef struct {
    void *context;
    /* ARM_OK and ARM_ALERT fill `out` completely; any other result leaves it untouched. */
    arm_result (*read)(void *context, int64_t deadline_ns, arm_reading *out);
    /* Goals are not answered on this bus: ARM_OK means sent, the next reading shows the effect. */
    arm_result (*write_goals)(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns);
    /* On: the goals become `goals` first, NULL: the present position. Off: attempts all six even if one fails. */
    arm_result (*set_torque)(void *context, bool on, const int32_t goals[ARM_JOINTS], int64_t deadline_ns);
    /* After a gap: ARM_REBOOTED when a servo lost its torque and its settings, else ARM_WATCHDOG when one stopped by
     * itself and refuses goals. */
    arm_result (*check_watchdog)(void *context, int64_t deadline_ns);
    /* The goals become `goals`, NULL: the present position; then goals are accepted again. */
    arm_result (*clear_watchdog)(void *context, const int32_t goals[ARM_JOINTS], int64_t deadline_ns);
} arm_port;

#endif
