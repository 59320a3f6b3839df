/* SPDX-License-Identifier: Apache-2.0 */
/* What the control loop tells of itself after each tick: its half of `control.state`. */
#define _GNU_SOURCE
#include "control.h"

#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const int warm_ticks = 3;

void control_tell_start(control *self, clock_class granted)
{
    const control_config *config = &self->config;
    self->status = (status){
        .session = config->pilot.schedule.session,
        .joints = config->pilot.joints,
        .pid = (uint64_t)getpid(),
        .period_ns = config->pilot.period_ns,
        .action_ns = config->pilot.action_ns,
        .reading_tick = -1,
        .shadow = config->shadow,
        .rest_ticks = self->pilot.guard.rest_ticks,
        .fifo = granted.fifo,
        .locked = granted.locked,
        .age_ns = -1,
        .warm_joint = -1,
        .trouble_joint = -1,
    };
    memcpy(self->status.digest, config->pilot.schedule.digest, DIGEST_BYTES);
    memcpy(self->status.arm, config->pilot.arm, sizeof self->status.arm);
    memcpy(self->status.names, config->pilot.names, sizeof self->status.names);
    strncpy(self->status.record, config->record_path, STATUS_PATH_BYTES - 1);
}

void control_tell(control *self, int64_t start_ns, int64_t io_ns, int64_t work_ns)
{
    status *told = &self->status;
    const pilot *pilot = &self->pilot;
    const pilot_output *output = &self->output;
    const schedule_plan *plan = &pilot->schedule.plans[pilot->schedule.current];
    told->tick = self->clock.tick;
    told->tick_ns = start_ns;
    if (self->heard_ns == start_ns && self->pilot.lost == 0) {
        told->reading_tick = self->clock.tick;
        told->reading_ns = self->input.reading.time_ns;
        for (int i = 0; i < self->config.pilot.joints; i++) {
            const guard_limits *limits = &self->config.pilot.limits[i];
            told->present[i] = self->input.reading.position[i];
            told->positions[i] = (float)((told->present[i] - limits->offset) / limits->scale);
            told->velocities[i] = (float)(self->input.reading.velocity[i] * self->arm->velocity_unit / limits->scale);
            told->load[i] = self->input.reading.load[i];
        }
    } else {
        told->lost_reads++;
        told->trouble_joint = self->silent_joint;
        told->trouble_register = 0;
    }
    memcpy(told->goals, output->guard.goals, sizeof told->goals);
    told->state = (int32_t)output->state;
    told->reason = (int32_t)output->reason;
    told->joint = output->joint;
    told->latched = output->latched;
    told->torque = pilot->torque;
    told->verdict = (int32_t)output->guard.verdict;
    told->verdict_joint = output->guard.joint;
    told->goal_moved_tick = pilot->schedule.goal_moved_tick;
    told->action_sequence = output->action.sequence;
    told->action_index = output->action.index;
    told->plan_tick = plan->start;
    told->actions_left = schedule_left(&pilot->schedule, told->tick);
    told->patience_ns = pilot->patience_ns;
    told->age_ns = plan->present ? start_ns - plan->data.observation_ns : -1;
    told->ticks++;
    told->missed = (uint64_t)self->clock.missed;
    told->moving_ticks += output->state == PILOT_MOVING;
    told->guard_verdicts[output->guard.verdict] += output->action.due;
    told->overwritten = self->ring.overwritten;
    told->unattended = self->input.unattended;
    told->unguarded = self->input.unguarded;
    told->writer = self->input.writer;
    told->late_ns = start_ns - clock_due_ns(&self->clock, self->clock.tick);
    told->io_ns = io_ns;
    if (told->ticks > (uint64_t)warm_ticks) {
        told->late_max_ns = told->late_ns > told->late_max_ns ? told->late_ns : told->late_max_ns;
        told->io_max_ns = io_ns > told->io_max_ns ? io_ns : told->io_max_ns;
        told->work_max_ns = work_ns > told->work_max_ns ? work_ns : told->work_max_ns;
    }
    status_publish(self->state_file.memory, told);
}

void control_count_faults(control *self)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    if (self->status.ticks < (uint64_t)warm_ticks) {
        self->first_minor = (uint64_t)usage.ru_minflt;
        self->first_major = (uint64_t)usage.ru_majflt;
    }
    self->status.minor_faults = (uint64_t)usage.ru_minflt - self->first_minor;
    self->status.major_faults = (uint64_t)usage.ru_majflt - self->first_major;
}
