#define _GNU_SOURCE
#include "control.h"
#include "command.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

enum { MS = 1000000 };
static const int64_t io_budget_ns = 8 * MS;
static const int64_t torque_budget_min_ns = 25 * MS, torque_budget_max_ns = 60 * MS;
static const int64_t watchdog_gap_ns = 150 * MS;
static const int64_t reboot_gap_ns = 80 * MS; /* a servo whose voltage broke down is silent for longer */
static const int64_t unplugged_ns = 1000 * MS;
/* In an outage the servos are asked no more often than this: each lost answer takes one of the bus's 31 read lengths out
 * of use for half a second (bus.h), and with none left the end of the outage would not be seen. */
static const int64_t outage_pace_ns = 25 * MS;
enum { OUTAGE_READS = 4 };
static const int warm_ticks = 3;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t bus_budget_ns(int64_t period_ns)
{
    return least(io_budget_ns, period_ns / 2);
}

int64_t control_answer_ns(int64_t period_ns)
{
    return bus_budget_ns(period_ns) * 13 / 16;
}

/* For a dozen exchanges with the servos, of which each takes as long as a reading; the arm is at rest then. */
static int64_t torque_budget_ns(const control *self)
{
    return least(most(12 * self->answer_ns, torque_budget_min_ns), torque_budget_max_ns);
}

static int32_t saturated(int64_t ns)
{
    return (int32_t)(ns > 2000000000 ? 2000000000 : ns < -2000000000 ? -2000000000 : ns);
}

/* Signals that came since the last tick: one byte each. */
static int take_signals(int signal_fd)
{
    char bytes[16];
    ssize_t n = signal_fd >= 0 ? read(signal_fd, bytes, sizeof bytes) : 0;
    return n > 0 ? (int)n : 0;
}

/* Faults in the pages below the stack pointer that the tick will use. */
static void prefault_stack(void)
{
    volatile char pages[128 * 1024];
    for (size_t i = 0; i < sizeof pages; i += 1024)
        pages[i] = 0;
}

static control_result open_files(control *self)
{
    control_result result = {.exit = CONTROL_BAD_FILE};
    const control_config *config = &self->config;
    result.failed_path = config->ring_path;
    result.failed_errno = ring_open(&self->ring_file, config->ring_path, false);
    if (result.failed_errno == 0) {
        result.failed_path = config->record_path;
        result.failed_errno = record_create(&self->record, config->record_path, config->record_cells, &config->pilot, config->shadow);
    }
    if (result.failed_errno == 0) {
        result.failed_path = config->state_path;
        result.failed_errno = status_open(&self->state_file, config->state_path, true);
    }
    if (result.failed_errno == 0)
        result.exit = CONTROL_STOPPED;
    return result;
}

static void close_files(control *self)
{
    shared_close(&self->ring_file);
    record_close(&self->record);
    shared_close(&self->state_file);
}

/* The operator's command of this tick: a signal, the socket, or one the loop gives itself. */
static command_request take_command(control *self)
{
    command_request request = {.command = COMMAND_NONE};
    int signals = take_signals(self->config.signal_fd);
    self->signals += signals;
    if (signals > 0) {
        request.command = COMMAND_STOP;
    } else if (self->config.arm_at_start && self->input.read_result == ARM_OK && self->clock.tick > 0) {
        request.command = COMMAND_ARM;
    } else if (self->config.stop_after_ticks > 0 && self->clock.tick >= self->config.stop_after_ticks) {
        self->config.stop_after_ticks = 0;
        request.command = COMMAND_STOP;
    } else if (self->config.socket_fd >= 0) {
        request = command_take(self->config.socket_fd);
    }
    return request;
}

/* The status that follows from what the loop has just done. */
static void tell(control *self, int64_t start_ns, int64_t io_ns, int64_t work_ns)
{
    status *told = &self->status;
    const pilot *pilot = &self->pilot;
    const pilot_output *output = &self->output;
    const schedule_plan *plan = &pilot->schedule.plans[pilot->schedule.current];
    told->tick = self->clock.tick;
    told->tick_ns = start_ns;
    if (self->heard_ns == start_ns) {
        told->reading_tick = self->clock.tick;
        told->reading_ns = self->input.reading.time_ns;
        for (int i = 0; i < ARM_JOINTS; i++) {
            const guard_limits *limits = &self->config.pilot.limits[i];
            const double counts_per_unit = 0.229 * 4096.0 / 60.0; /* 0.229 rpm in counts/s */
            told->present[i] = self->input.reading.position[i];
            told->positions[i] = (float)((told->present[i] - limits->offset) / limits->scale);
            told->velocities[i] = (float)(self->input.reading.velocity[i] * counts_per_unit / limits->scale);
            told->load[i] = self->input.reading.load[i];
        }
    } else {
        told->lost_reads++;
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
    told->actions_left = plan->present && plan->start + plan->data.n > told->tick ? plan->start + plan->data.n - told->tick - 1 : 0;
    told->patience_ns = pilot->patience_ns;
    told->age_ns = plan->present ? start_ns - plan->data.observation_ns : -1;
    told->ticks++;
    told->missed = (uint64_t)self->clock.missed;
    told->moving_ticks += output->state == PILOT_MOVING;
    told->guard_verdicts[output->guard.verdict] += output->action.due;
    told->overwritten = self->ring.overwritten;
    told->late_ns = start_ns - clock_due_ns(&self->clock, self->clock.tick);
    told->io_ns = io_ns;
    if (told->ticks > (uint64_t)warm_ticks) {
        told->late_max_ns = told->late_ns > told->late_max_ns ? told->late_ns : told->late_max_ns;
        told->io_max_ns = io_ns > told->io_max_ns ? io_ns : told->io_max_ns;
        told->work_max_ns = work_ns > told->work_max_ns ? work_ns : told->work_max_ns;
    }
    status_publish(self->state_file.memory, told);
}

static void count_faults(control *self)
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

/* Has the bus been silent for so long that the servos may have stopped by themselves, or one may have rebooted? No
 * answer counts as silence: what did not answer may not have heard us either. On a slow bus this takes the time of the
 * tick's reading, so the pilot is told of a tripped watchdog as soon as there is one. */
static void check_gap(control *self, int64_t start_ns, int64_t deadline_ns)
{
    int64_t sure_ns = most(self->heard_ns, self->checked_ns);
    int64_t gap_ns = least(most(self->clock.period_ns * 5 / 2, reboot_gap_ns), watchdog_gap_ns);
    if (sure_ns != 0 && start_ns - sure_ns > gap_ns)
        self->watchdog_due = true;
    if (self->last_tick_ns != 0 && start_ns - self->last_tick_ns > watchdog_gap_ns)
        self->absent = self->watchdog_due = true;
    self->last_tick_ns = start_ns;
    self->input.absent = self->absent;
    self->input.watchdog = false;
    if (!self->pilot.torque || self->config.shadow)
        return;
    if (self->watchdog_due && !self->tripped) {
        arm_result result = self->arm->check_watchdog(self->arm->context, deadline_ns);
        bool told = result == ARM_OK || result == ARM_WATCHDOG || result == ARM_REBOOTED;
        self->watchdog_due = !told; /* no answer: ask again */
        self->checked_ns = told ? start_ns : self->checked_ns;
        self->tripped = result == ARM_WATCHDOG;
        self->input.torque_failed = self->input.torque_failed || result == ARM_REBOOTED;
    }
    self->input.watchdog = self->tripped;
}

static void take_notice(control *self)
{
    ring_notice_read(&self->ring, &self->notice);
    bool given = self->notice.p99_ns > 0 && self->notice.p99_ns < INT64_MAX / 3;
    self->input.patience_ns = given ? 3 * self->notice.p99_ns : 0;
    self->input.plan_then_move = given && self->notice.plan_then_move != 0;
    self->input.dropped_through = given ? self->notice.dropped_through : -1;
}

/* Every chunk that came since the last tick, to the pilot; what it takes, to the record. */
static void take_chunks(control *self)
{
    for (int i = 0; i < RING_SLOTS; i++) {
        ring_result result = ring_take(&self->ring, &self->chunk);
        if (result == RING_EMPTY)
            return;
        chunk_verdict verdict = result == RING_TORN ? CHUNK_TORN : ring_check(&self->chunk, ARM_JOINTS);
        self->input.malformed = self->input.malformed || chunk_is_malformed(verdict);
        if (verdict == CHUNK_TAKEN)
            verdict = pilot_offer(&self->pilot, &self->input, &self->chunk);
        if (verdict == CHUNK_TAKEN)
            record_put_chunk(&self->record, self->input.tick, &self->chunk);
        self->status.chunk_verdicts[verdict]++;
    }
}

/* What was decided, to the bus. What fails is the next tick's input. */
static void act(control *self, int64_t start_ns, int64_t budget_ns)
{
    const pilot_output *output = &self->output;
    const arm_port *arm = self->arm;
    arm_result result = ARM_OK;
    self->input.unsent = false;
    self->input.torque_failed = false;
    self->input.unplugged = false;
    if (self->config.shadow)
        return;
    if (output->clear_watchdog)
        result = arm->clear_watchdog(arm->context, output->guard.goals, clock_now_ns() + torque_budget_ns(self));
    if (output->clear_watchdog && result != ARM_OK)
        self->watchdog_due = true; /* still tripped: found again at the next tick */
    if (output->write) {
        result = arm->write_goals(arm->context, output->guard.goals, start_ns + budget_ns);
        self->input.unsent = result != ARM_OK;
    }
    if (output->torque != TORQUE_KEEP) {
        result = arm->set_torque(arm->context, output->torque == TORQUE_ON, output->guard.goals,
                                 clock_now_ns() + torque_budget_ns(self));
        self->input.torque_failed = result != ARM_OK;
    }
    self->input.unplugged = result == ARM_UNPLUGGED;
}

/* True when the loop ends. */
static bool run_tick(control *self, int64_t start_ns)
{
    pilot_input *input = &self->input;
    int64_t budget_ns = bus_budget_ns(self->clock.period_ns);
    count_faults(self);
    command_request request = take_command(self);
    input->tick = self->clock.tick;
    input->now_ns = start_ns;
    input->command = request.command;
    input->malformed = false;

    int64_t before_ns = clock_now_ns();
    int64_t deadline_ns = start_ns + control_answer_ns(self->clock.period_ns);
    bool asks = self->pilot.lost < OUTAGE_READS || start_ns - self->asked_ns >= outage_pace_ns;
    check_gap(self, start_ns, asks ? deadline_ns : start_ns);
    int64_t asked_ns = clock_now_ns();
    input->read_result = asks ? self->arm->read(self->arm->context, deadline_ns, &input->reading) : ARM_TIMEOUT;
    self->asked_ns = asks ? start_ns : self->asked_ns;
    int64_t read_ns = clock_now_ns() - before_ns;
    bool heard = input->read_result == ARM_OK || input->read_result == ARM_ALERT;
    if (heard) {
        self->heard_ns = start_ns;
        self->answer_ns = clock_now_ns() - asked_ns;
        self->absent = self->absent && self->watchdog_due;
        self->tripped = false;
    }
    input->watchdog = input->watchdog && heard; /* clearing it needs to know where the arm is */

    take_notice(self); /* before the pilot looks at it: the record holds what the pilot was given */
    pilot_begin(&self->pilot, input, &self->output);
    take_chunks(self);
    pilot_end(&self->pilot, input, &self->output);
    record_tick told = record_tick_of(input, &self->output); /* before `act` writes the next tick's input */

    before_ns = clock_now_ns();
    act(self, start_ns, budget_ns);
    int64_t end_ns = clock_now_ns();
    told.late_ns = saturated(start_ns - clock_due_ns(&self->clock, self->clock.tick));
    told.read_ns = saturated(read_ns);
    told.write_ns = saturated(end_ns - before_ns);
    told.work_ns = saturated(end_ns - start_ns);
    record_put_tick(&self->record, &told);
    bool slow = self->output.torque != TORQUE_KEEP || self->output.clear_watchdog;
    tell(self, start_ns, slow ? 0 : read_ns + end_ns - before_ns, slow ? 0 : end_ns - start_ns);
    if (request.address_bytes > 0)
        command_reply(self->config.socket_fd, &request, &self->output);

    if (request.command == COMMAND_ARM && heard) /* one try: an arm that was not fit to start does not start later by itself */
        self->config.arm_at_start = false;
    bool gone = self->output.reason == REASON_UNPLUGGED;
    self->unplugged_ns = !gone ? 0 : self->unplugged_ns != 0 ? self->unplugged_ns : start_ns;
    return self->output.done || self->signals > 1 || (gone && start_ns - self->unplugged_ns >= unplugged_ns);
}

control_result control_run(control *self, const control_config *config, const arm_port *arm)
{
    memset(self, 0, sizeof *self); /* also faults in every page of it */
    self->config = *config;
    self->arm = arm;
    control_result result = {.exit = CONTROL_BAD_LIMITS};
    result.limits = pilot_init(&self->pilot, &config->pilot, &result.joint);
    if (result.limits != GUARD_CONFIG_OK)
        return result;
    result = open_files(self);
    if (result.exit != CONTROL_STOPPED) {
        close_files(self);
        return result;
    }
    ring_reader_start(&self->ring, self->ring_file.memory);

    clock_class granted = {0};
    if (config->priority > 0)
        granted = clock_ask_realtime(config->priority);
    prefault_stack();
    self->status = (status){
        .session = config->pilot.schedule.session,
        .pid = (uint64_t)getpid(),
        .period_ns = config->pilot.period_ns,
        .reading_tick = -1,
        .shadow = config->shadow,
        .rest_ticks = self->pilot.guard.rest_ticks,
        .fifo = granted.fifo,
        .locked = granted.locked,
        .age_ns = -1,
    };
    memcpy(self->status.digest, config->pilot.schedule.digest, DIGEST_BYTES);
    strncpy(self->status.record, config->record_path, STATUS_PATH_BYTES - 1);
    self->clock = (tick_clock){.t0_ns = clock_now_ns() + config->pilot.period_ns, .period_ns = config->pilot.period_ns};
    self->status.t0_ns = self->clock.t0_ns;
    self->input.read_result = ARM_TIMEOUT;

    for (;;) {
        clock_sleep_until(clock_due_ns(&self->clock, self->clock.tick));
        if (run_tick(self, clock_now_ns()))
            break;
        clock_advance(&self->clock, clock_now_ns());
    }
    if (granted.fifo || granted.locked)
        clock_leave_realtime();
    close_files(self);
    result.exit = self->signals > 1 ? CONTROL_INTERRUPTED : self->output.done ? CONTROL_STOPPED : CONTROL_UNPLUGGED;
    return result;
}
