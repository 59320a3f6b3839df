/* SPDX-License-Identifier: Apache-2.0 */
/* An arm without a bus, for tests and for timing the loop alone: its joints are where the last goals put them. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "arm.h"

typedef struct {
    arm_port port;
    arm_reading reading;
    uint8_t torque;
} still_arm;

static arm_result still_read(void *context, int64_t deadline_ns, arm_reading *out)
{
    still_arm *self = context;
    struct timespec now;
    (void)deadline_ns;
    clock_gettime(CLOCK_MONOTONIC, &now);
    self->reading.time_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
    *out = self->reading;
    return ARM_OK;
}

static arm_result still_write(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)deadline_ns;
    memcpy(((still_arm *)context)->reading.position, goals,
           (size_t)((still_arm *)context)->port.joints * sizeof goals[0]);
    return ARM_OK;
}

static arm_result still_torque(void *context, bool on, const int32_t *goals, int64_t deadline_ns)
{
    (void)goals;
    (void)deadline_ns;
    ((still_arm *)context)->torque = on;
    return ARM_OK;
}

static arm_result still_watchdog(void *context, int64_t deadline_ns)
{
    (void)context;
    (void)deadline_ns;
    return ARM_OK;
}

static arm_result still_clear(void *context, const int32_t *goals, int64_t deadline_ns)
{
    (void)goals;
    return still_watchdog(context, deadline_ns);
}

static arm_result still_health(void *context, int64_t deadline_ns, arm_health *out)
{
    still_arm *self = context;
    (void)deadline_ns;
    out->part = out->part % (HEALTH_PARTS - 1) + 1;
    memset(out->torque, self->torque, sizeof out->torque);
    memcpy(out->goals, self->reading.position, sizeof out->goals);
    return ARM_OK;
}

static arm_result still_reboot(void *context, uint32_t joints, int64_t deadline_ns)
{
    (void)joints;
    return still_watchdog(context, deadline_ns);
}

/* An arm at these counts; NULL: no memory, or too many. It lives until the process ends. */
arm_port *still_arm_new(const int32_t *positions, int32_t joints)
{
    still_arm *self = calloc(1, sizeof *self);
    if (self == NULL || joints > ARM_JOINTS_MAX)
        return NULL;
    memcpy(self->reading.position, positions, (size_t)joints * sizeof *positions);
    static const arm_trouble none = {.joint = -1};
    self->port = (arm_port){.context = self,
                            .joints = joints,
                            .velocity_unit = 1.0,
                            .trouble = &none,
                            .read = still_read,
                            .write_goals = still_write,
                            .set_torque = still_torque,
                            .check_watchdog = still_watchdog,
                            .clear_watchdog = still_clear,
                            .health = still_health,
                            .reboot = still_reboot};
    return &self->port;
}
