/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "control.h"
#include "command.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { MS = 1000000 };
static const int64_t io_budget_ns = 8 * MS;
static const int64_t clear_budget_min_ns = 25 * MS, clear_budget_max_ns = 60 * MS;
static const int64_t torque_budget_min_ns = 60 * MS, torque_budget_max_ns = 400 * MS;
static const int64_t reboot_budget_ns = 1000 * MS;
static const int64_t watchdog_gap_ns = 150 * MS;
static const int64_t reboot_gap_ns = 80 * MS; /* a servo whose voltage broke down is silent for longer */
static const int64_t unplugged_ns = 1000 * MS;
/* In an outage the servos are asked no more often than this: each lost answer takes one of the bus's 31 read lengths
 * out of use for half a second (bus.h), and with none left the end of the outage would not be seen. */
static const int64_t outage_pace_ns = 25 * MS;
enum { OUTAGE_READS = 4 };

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
static int64_t clear_budget_ns(const control *self)
{
    return least(most(12 * self->answer_ns, clear_budget_min_ns), clear_budget_max_ns);
}

/* The same with the settings of servos that have forgotten them, one by one. */
static int64_t torque_budget_ns(const control *self)
{
    return least(most(64 * self->answer_ns, torque_budget_min_ns), torque_budget_max_ns);
}

static int64_t now(const control *self)
{
    return self->config.clock.now_ns();
}

static int32_t saturated(int64_t ns)
{
    return (int32_t)(ns > 2000000000 ? 2000000000 : ns < -2000000000 ? -2000000000 : ns);
}

/* Signals that came since the last tick: one byte each, its number. The command they mean. */
static pilot_command take_signals(control *self)
{
    uint8_t bytes[16];
    ssize_t n = self->config.signal_fd >= 0 ? read(self->config.signal_fd, bytes, sizeof bytes) : 0;
    pilot_command command = COMMAND_NONE;
    for (ssize_t i = 0; i < n; i++) {
        bool interrupt = bytes[i] == SIGINT;
        self->interrupts += interrupt;
        self->terminations += !interrupt;
        command = interrupt ? COMMAND_HOLD : COMMAND_STOP;
    }
    return command;
}

/* A second signal of a kind; the first interrupt when the arm rests and nobody is there to say more. */
static bool interrupted(const control *self)
{
    bool rests = !self->pilot.guard.started || guard_at_rest(&self->pilot.guard);
    return self->interrupts > 1 || self->terminations > 1 ||
           (self->interrupts == 1 && self->config.interrupt_ends && rests);
}

/* Faults in the pages below the stack pointer that the tick will use. */
static void prefault_stack(void)
{
    volatile char pages[128 * 1024];
    for (size_t i = 0; i < sizeof pages; i += 1024)
        pages[i] = 0;
}

/* Takes note of a file that cannot be used; whether it can. */
static bool usable(control_result *result, const char *path, int failure)
{
    result->failed_path = path;
    result->failed_errno = failure;
    return failure == 0;
}

static control_result open_files(control *self)
{
    control_result result = {.exit = CONTROL_BAD_FILE};
    const control_config *from = &self->config;
    if (usable(&result, from->ring_path, ring_open(&self->ring_file, from->ring_path, false)) &&
        usable(&result, from->record_path,
               record_create(&self->record, from->record_path, from->record_cells, &from->pilot, from->shadow)) &&
        usable(&result, from->state_path, status_open(&self->state_file, from->state_path, true)) &&
        (from->beat_path == NULL ||
         usable(&result, from->beat_path, beat_open(&self->beat_file, from->beat_path, false))))
        result.exit = CONTROL_STOPPED;
    const shared_file *const files[] = {&self->ring_file, &self->record.file, &self->state_file, &self->beat_file};
    shared_guard(files, sizeof files / sizeof files[0]);
    return result;
}

static void close_files(control *self)
{
    shared_unguard();
    shared_close(&self->beat_file);
    shared_close(&self->ring_file);
    record_close(&self->record);
    shared_close(&self->state_file);
}

/* Has the arm waited for so long for a plan that nobody may be there? One told to hold is not parked unasked. */
static bool idles(control *self)
{
    const pilot *pilot = &self->pilot;
    bool waits = pilot->state == PILOT_PLANNING || (pilot->state == PILOT_HOLD && pilot->reason == REASON_NO_ACTION);
    int64_t now_ns = now(self);
    self->idle_ns = !waits ? 0 : self->idle_ns != 0 ? self->idle_ns : now_ns;
    return waits && self->config.park_after_ns > 0 && pilot->config.has_park &&
           now_ns - self->idle_ns >= self->config.park_after_ns;
}

/* The operator's command of this tick: a signal, the socket, or one the loop gives itself. */
static command_request take_command(control *self)
{
    command_request request = {.command = COMMAND_NONE};
    pilot_command signalled = take_signals(self);
    if (signalled != COMMAND_NONE) {
        request.command = signalled;
    } else if (self->config.arm_at_start && self->input.read_result == ARM_OK && self->clock.tick > 0) {
        request.command = COMMAND_ARM;
    } else if (self->config.stop_after_ticks > 0 && self->clock.tick >= self->config.stop_after_ticks) {
        self->config.stop_after_ticks = 0;
        request.command = COMMAND_STOP;
    } else if (self->config.socket_fd >= 0) {
        request = command_take(self->config.socket_fd);
    }
    if (request.command == COMMAND_NONE && idles(self))
        request.command = COMMAND_PARK_IDLE;
    return request;
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
    int64_t boot_ns = self->config.clock.boot_ns();
    if (self->last_boot_ns != 0 && boot_ns - self->last_boot_ns > watchdog_gap_ns)
        self->absent = self->watchdog_due = true;
    self->last_boot_ns = boot_ns;
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
        if (result == ARM_REBOOTED) {
            self->input.torque_failed = true;
            self->input.trouble_joint = self->arm->trouble->joint;
        }
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
        chunk_verdict verdict =
            result == RING_TORN ? CHUNK_TORN : ring_check(&self->chunk, (uint32_t)self->config.pilot.joints);
        self->input.malformed = self->input.malformed || chunk_is_malformed(verdict);
        if (verdict == CHUNK_TAKEN)
            verdict = pilot_offer(&self->pilot, &self->input, &self->chunk);
        if (verdict == CHUNK_TAKEN)
            record_put_chunk(&self->record, self->input.tick, &self->chunk);
        self->status.chunk_verdicts[verdict]++;
    }
}

/* Torque as decided; an answer that was promised before is taken back when it fails. */
static arm_result switch_torque(control *self)
{
    const arm_port *arm = self->arm;
    pilot_output *output = &self->output;
    arm_result result = arm->set_torque(arm->context, output->torque == TORQUE_ON, output->guard.goals,
                                        now(self) + torque_budget_ns(self));
    self->input.torque_failed = result != ARM_OK;
    self->input.setting_refused = result == ARM_REFUSED;
    arm_trouble trouble = result != ARM_OK ? *arm->trouble : (arm_trouble){.joint = -1};
    self->input.trouble_joint = self->status.trouble_joint = trouble.joint;
    self->status.trouble_register = trouble.address;
    self->status.trouble_wanted = trouble.wanted;
    self->status.trouble_found = trouble.found;
    if (result != ARM_OK && output->answer == ANSWER_DONE)
        output->answer = ANSWER_FAULT;
    return result;
}

/* What was decided, to the bus. What fails is the next tick's input. */
static void act(control *self, int64_t start_ns, int64_t budget_ns)
{
    const pilot_output *output = &self->output;
    const arm_port *arm = self->arm;
    arm_result result = ARM_OK;
    self->input.unsent = false;
    self->input.torque_failed = self->input.setting_refused = false;
    self->input.trouble_joint = -1;
    self->input.unplugged = false;
    if (self->config.shadow)
        return;
    if (output->clear_watchdog)
        result = arm->clear_watchdog(arm->context, output->from, now(self) + clear_budget_ns(self));
    if (output->clear_watchdog && result != ARM_OK)
        self->watchdog_due = true; /* still tripped: found again at the next tick */
    if (output->write) {
        result = arm->write_goals(arm->context, output->guard.goals, start_ns + budget_ns);
        self->input.unsent = result != ARM_OK;
    }
    if (output->torque != TORQUE_KEEP)
        result = switch_torque(self);
    if (output->reboot != 0)
        result = arm->reboot(arm->context, output->reboot, now(self) + reboot_budget_ns);
    self->input.unplugged = result == ARM_UNPLUGGED;
}

/* One question more, where the tick's time on the bus has room for an answer that takes as long as the reading did. */
static void ask_health(control *self, int64_t end_ns)
{
    bool driven = self->pilot.torque && !self->config.shadow;
    arm_health *health = &self->health;
    status *told = &self->status;
    if (now(self) + self->answer_ns * 5 / 4 > end_ns || self->arm->health(self->arm->context, end_ns, health) != ARM_OK)
        return;
    if (!driven && health->part != HEALTH_SUPPLY && health->part != HEALTH_TORQUE)
        return;
    const int32_t *sent = self->output.write && !self->input.unsent ? self->output.guard.goals : NULL;
    health_finding found = health_judge(&self->watch, health, self->config.pilot.health, self->config.pilot.joints,
                                        sent, self->pilot.limp);
    self->tripped = self->tripped || found.kind == FINDING_STOPPED;
    self->input.finding = driven || health->part == HEALTH_SUPPLY ? found : (health_finding){.joint = -1};
    told->health_reads++;
    for (int i = 0; i < self->config.pilot.joints; i++) {
        told->error[i] = health->error[i];
        told->temperature[i] = health->temperature[i];
        told->voltage[i] = health->voltage[i];
    }
    if (health->part == HEALTH_SUPPLY)
        told->warm_joint = found.kind == FINDING_WARM || found.kind == FINDING_HOT ? found.joint : -1;
}

/* True when the loop ends. */
static bool run_tick(control *self, int64_t start_ns)
{
    pilot_input *input = &self->input;
    int64_t budget_ns = bus_budget_ns(self->clock.period_ns);
    control_count_faults(self);
    command_request request = take_command(self);
    input->tick = self->clock.tick;
    input->now_ns = start_ns;
    input->command = request.command;
    input->malformed = false;
    input->damaged = shared_damaged();
    input->writer = ring_writer(self->ring.ring);
    input->unattended = self->beat_file.memory != NULL && beat_missing(self->beat_file.memory, start_ns);
    input->unguarded = self->arm->guarded != NULL && !self->arm->guarded(self->arm->context, start_ns);

    int64_t before_ns = now(self);
    int64_t deadline_ns = start_ns + control_answer_ns(self->clock.period_ns);
    bool asks = self->pilot.lost < OUTAGE_READS || start_ns - self->asked_ns >= outage_pace_ns;
    check_gap(self, start_ns, asks ? deadline_ns : start_ns);
    int64_t asked_ns = now(self);
    input->read_result = asks ? self->arm->read(self->arm->context, deadline_ns, &input->reading) : ARM_TIMEOUT;
    self->asked_ns = asks ? start_ns : self->asked_ns;
    int64_t read_ns = now(self) - before_ns;
    bool heard = input->read_result == ARM_OK || input->read_result == ARM_ALERT;
    if (asks)
        self->silent_joint = heard ? -1 : self->arm->trouble->joint;
    if (!heard && !input->torque_failed)
        input->trouble_joint = self->silent_joint;
    if (heard) {
        self->heard_ns = start_ns;
        self->answer_ns = now(self) - asked_ns;
        self->absent = self->absent && self->watchdog_due;
    }
    input->watchdog = input->watchdog && heard; /* clearing it needs to know where the arm is */

    take_notice(self); /* before the pilot looks at it: the record holds what the pilot was given */
    pilot_begin(&self->pilot, input, &self->output);
    self->tripped = self->tripped && self->pilot.lost > 0; /* else the pilot was told */
    take_chunks(self);
    pilot_end(&self->pilot, input, &self->output);
    record_tick told = record_tick_of(input, &self->output); /* before `act` writes the next tick's input */

    before_ns = now(self);
    bool slow = self->output.torque != TORQUE_KEEP || self->output.clear_watchdog || self->output.reboot != 0;
    act(self, start_ns, budget_ns);
    input->finding = (health_finding){.joint = -1};
    if (heard && !slow)
        ask_health(self, start_ns + budget_ns);
    int64_t end_ns = now(self);
    told.late_ns = saturated(start_ns - clock_due_ns(&self->clock, self->clock.tick));
    told.read_ns = saturated(read_ns);
    told.write_ns = saturated(end_ns - before_ns);
    told.work_ns = saturated(end_ns - start_ns);
    record_put_tick(&self->record, &told);
    control_tell(self, start_ns, slow ? 0 : read_ns + end_ns - before_ns, slow ? 0 : end_ns - start_ns);
    if (request.address_bytes > 0)
        command_reply(self->config.socket_fd, &request, &self->output);

    /* One try: an arm that was not fit to start does not start later by itself. */
    if (request.command == COMMAND_ARM && heard)
        self->config.arm_at_start = false;
    bool gone = self->output.reason == REASON_UNPLUGGED;
    self->unplugged_ns = !gone ? 0 : self->unplugged_ns != 0 ? self->unplugged_ns : start_ns;
    return self->output.done || interrupted(self) || (gone && start_ns - self->unplugged_ns >= unplugged_ns);
}

control_result control_run(control *self, const control_config *config, const arm_port *arm)
{
    memset(self, 0, sizeof *self); /* also faults in every page of it */
    self->config = *config;
    if (self->config.clock.now_ns == NULL)
        self->config.clock =
            (clock_source){.now_ns = clock_now_ns, .boot_ns = clock_boot_ns, .sleep_until = clock_sleep_until};
    self->input.trouble_joint = self->input.finding.joint = -1;
    self->arm = arm;
    /* An arm that is told nothing does not press. */
    for (int i = 0; i < self->config.pilot.joints && config->shadow; i++)
        self->config.pilot.press[i] = (press_limits){.gravity = GUARD_COUNTS_MAX};
    control_result result = {.exit = CONTROL_BAD_LIMITS};
    result.limits = pilot_init(&self->pilot, &self->config.pilot, &result.joint);
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
    control_tell_start(self, granted);
    self->clock = (tick_clock){.t0_ns = now(self) + config->pilot.period_ns, .period_ns = config->pilot.period_ns};
    self->input.read_result = ARM_TIMEOUT;

    for (;;) {
        self->config.clock.sleep_until(clock_due_ns(&self->clock, self->clock.tick));
        if (run_tick(self, now(self)))
            break;
        clock_advance(&self->clock, now(self));
    }
    if (granted.fifo || granted.locked)
        clock_leave_realtime();
    close_files(self);
    result.exit = interrupted(self) ? CONTROL_INTERRUPTED : self->output.done ? CONTROL_STOPPED : CONTROL_UNPLUGGED;
    return result;
}
