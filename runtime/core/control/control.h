/* SPDX-License-Identifier: Apache-2.0 */
/* The control loop: one call that runs until it is stopped.
 *
 * Each tick: wait for its time, take one command, read the joints, take new
 * chunks, decide (pilot), write the goals, keep the record, publish the status.
 * Nothing in the tick allocates, waits for inference or touches a new page.
 * Bytes on `signal_fd` are signals by their number. SIGTERM is the command
 * `stop`. SIGINT is the command `hold`; with `interrupt_ends` the loop ends when
 * the arm rests. A second one of a kind ends the loop at once, with the arm
 * holding.
 */
#pragma once

#include "beat.h"
#include "clock.h"
#include "health.h"
#include "pilot.h"
#include "record.h"
#include "ring.h"
#include "status.h"

typedef struct {
    pilot_config pilot;
    const char *ring_path, *state_path, *record_path;
    const char *beat_path; /* of the supervisor, NULL: nobody's silence is heard */
    uint64_t record_cells;
    int socket_fd;       /* bound datagram socket for commands, -1: none */
    int signal_fd;       /* non-blocking; the process's signal handler writes a byte to its other end, -1: none */
    int priority;        /* of SCHED_FIFO, 0: do not ask */
    bool interrupt_ends; /* nobody is there to say more after a SIGINT */
    bool shadow;         /* decide and record, write nothing to the bus */
    bool arm_at_start;
    int64_t stop_after_ticks; /* ask to stop by itself, 0: never */
    int64_t park_after_ns;    /* park when armed and without a plan for so long, 0: never */
    clock_source clock;  /* all zero: the machine's */
} control_config;

typedef enum {
    CONTROL_STOPPED,      /* asked to stop; at rest, parked where a pose is known */
    CONTROL_UNPLUGGED,    /* the bus is gone for a second */
    CONTROL_INTERRUPTED,  /* ended at once by a second signal, or by the first where nobody is there */
    CONTROL_BAD_LIMITS,   /* the guard refused the limits; `joint` and `limits` say which */
    CONTROL_BAD_FILE,     /* a file cannot be used; `failed_path` and `failed_errno` */
} control_exit;

typedef struct {
    control_exit exit;
    const char *failed_path;
    int failed_errno;
    guard_config_error limits;
    int joint;
} control_result;

/* All memory of the loop, allocated by the caller before it starts. */
typedef struct {
    control_config config;
    const arm_port *arm;
    pilot pilot;
    tick_clock clock;
    shared_file ring_file, state_file, beat_file;
    ring_reader ring;
    ring_notice notice;
    record record;
    status status;
    chunk chunk;
    pilot_input input;
    pilot_output output;
    int64_t heard_ns;      /* start of the last tick with a reading, 0: none yet */
    int64_t checked_ns;    /* start of the last tick in which the servos told of their watchdogs, 0: none yet */
    int64_t answer_ns;     /* how long the last reading took */
    int32_t silent_joint;  /* whose answer was missing when the last reading was lost, -1: not known, or not lost */
    int64_t idle_ns;       /* since when the arm has been armed without a plan, 0: it is not */
    int64_t asked_ns;      /* start of the last tick that asked the servos */
    int64_t unplugged_ns;  /* since when the bus is gone, 0: it is not */
    int64_t last_boot_ns;  /* the tick before, on the clock that goes on while the machine is suspended */
    bool absent;           /* no tick ran for that long; until the servos have answered */
    bool watchdog_due; /* a gap was long enough for the servos to have stopped, or for one to have rebooted */
    bool tripped;      /* one was found stopped, and the pilot is told with the next reading */
    int interrupts, terminations; /* signals so far */
    arm_health health;
    health_watch watch;
    uint64_t first_minor, first_major;
} control;

/* What a tick gives the servos to answer; the goals have the rest of its time on the bus. */
int64_t control_answer_ns(int64_t period_ns);

control_result control_run(control *self, const control_config *config, const arm_port *arm);

/* control_status.c, for control.c alone: the status before the first tick, and what follows from the one just done. */
void control_tell_start(control *self, clock_class granted);
void control_tell(control *self, int64_t start_ns, int64_t io_ns, int64_t work_ns);
void control_count_faults(control *self);
