/* SPDX-License-Identifier: Apache-2.0 */
/* One tick's decision: readings, command and chunks in, goals out. Pure.
 *
 * The loop, the lockstep simulation and the replay of a flight record all call
 * `pilot_tick` with the same inputs and get the same goals, byte for byte.
 *
 * States
 *   DISARMED  no torque asked for; nothing is written.
 *   PLANNING  armed, at rest or slowing down, waiting for a first or rest chunk.
 *   MOVING    an action was due at this tick.
 *   HOLD      no action is due; after the latch time, on `hold`, and after a
 *             longer loss of readings it is latched: `arm` is needed.
 *   PARKING   a slow move to the parking pose through the guard, of the joints that have torque.
 *   FAULT     goals slow down to rest; `arm` or `recover` is needed, and the cause gone.
 *
 * Commands are true in every state: what `hold` has answered "done" to stands still from then on, whatever was asked
 * before, until another command comes. In a latched hold and in a fault the goals are led back once (press.h).
 */
#pragma once

#include "guard.h"
#include "health.h"
#include "press.h"
#include "schedule.h"

typedef enum {
    PILOT_DISARMED,
    PILOT_PLANNING,
    PILOT_MOVING,
    PILOT_HOLD,
    PILOT_PARKING,
    PILOT_FAULT,
} pilot_state;

typedef enum {
    REASON_NONE,
    REASON_OPERATOR,    /* hold or stop was asked for */
    REASON_NO_ACTION,   /* no chunk came within the latch time */
    REASON_READS_LOST,  /* three readings in a row, or half a second of them */
    REASON_ALERT,       /* a servo reports a hardware alert */
    REASON_UNPLUGGED,   /* the bus is gone */
    REASON_WATCHDOG,    /* a servo's bus watchdog had stopped it */
    REASON_OUTSIDE,     /* a joint lies so far outside its soft limits that it must have lost a turn */
    REASON_MALFORMED,   /* a chunk of wrong shape or with values that are not finite */
    REASON_PARKED,
    REASON_TORQUE,      /* a servo did not take the torque command, or rebooted and lost its torque */
    REASON_STALL,       /* a joint pressed against something */
    REASON_SETTING,     /* a servo does not take a setting, so there is no torque */
    REASON_DEAF,        /* a servo does not take goals */
    REASON_VOLTAGE,     /* a servo's supply is outside its limits */
    REASON_TEMPERATURE, /* a servo is about to shut down: the arm parks */
    REASON_SUPERVISOR,  /* who started the run is silent */
    REASON_WRITER,      /* another inference process writes chunks than when the arm was armed */
    REASON_FILES,       /* a file that control shares was cut short */
    REASON_IDLE,        /* nothing was planned for so long that the arm parks */
    REASON_GUARDIAN,    /* nobody would stop the servos if control died */
    REASONS,
} pilot_reason;

typedef enum {
    COMMAND_NONE,
    COMMAND_PING,
    COMMAND_ARM,
    COMMAND_HOLD,
    COMMAND_PARK,
    COMMAND_STOP,           /* slow down, park where a pose is known, end the loop */
    COMMAND_TORQUE_OFF,     /* only when parked or disarmed */
    COMMAND_TORQUE_OFF_NOW, /* at once, wherever the arm is: it may fall */
    COMMAND_RECOVER,        /* reboot servos with an alert, torque at the present position, hold */
    COMMAND_REDO,           /* hold; who exports the record leaves the running or the last episode out */
    COMMAND_PARK_IDLE,      /* the loop's own: park, as nothing was planned for long */
} pilot_command;

typedef enum {
    ANSWER_NONE,
    ANSWER_DONE,
    ANSWER_BUSY,
    ANSWER_NOT_ARMED,
    ANSWER_NOT_PARKED,
    ANSWER_NO_POSE,
    ANSWER_FAULT,
    ANSWER_OUTSIDE,
} pilot_answer;

typedef enum { TORQUE_KEEP, TORQUE_ON, TORQUE_OFF } pilot_torque;

typedef struct {
    guard_limits limits[ARM_JOINTS_MAX];
    schedule_config schedule;
    int64_t period_ns;
    int64_t patience_min_ns; /* least age limit and latch time (2 s) */
    int64_t patience_max_ns; /* most of both, whatever inference announces */
    int64_t reads_latch_ns;  /* readings lost this long latch the hold (0.5 s) */
    bool has_park;
    int32_t park[ARM_JOINTS_MAX]; /* counts */
    double park_speed;        /* counts/s */
    press_limits press[ARM_JOINTS_MAX];
    int64_t stall_ns;
    health_limits health[ARM_JOINTS_MAX];
    double travel[ARM_JOINTS_MAX]; /* counts/s no joint exceeds, pushed by hand or not; 0: not known */
    int64_t action_ns;         /* from one action of a chunk to the next, which is the data's period */
    int32_t guard_version, rounds_corners; /* rounds_corners: 0 in older records, schedule.h */
    /* From version 5 of the record on; before, arms had six joints. */
    int32_t joints;
    uint8_t arm_digest[DIGEST_BYTES];           /* sha256 of the arm's description */
    char arm[ARM_NAME_BYTES];                   /* its name */
    char names[ARM_JOINTS_MAX][ARM_NAME_BYTES]; /* of the joints */
    int32_t buses; /* that the arm's servos are on; 0: one */
    /* Not in older records: */
    uint8_t park_turn[ARM_JOINTS_MAX]; /* a joint parks when those of lower turns have */
} pilot_config;

/* Everything that differs from tick to tick, and nothing else decides: what the record keeps. */
typedef struct {
    int64_t tick;
    int64_t now_ns;
    arm_result read_result;
    arm_reading reading;      /* valid with ARM_OK and ARM_ALERT */
    bool watchdog;            /* a servo's bus watchdog was found tripped */
    bool absent;              /* while we ran no tick ourselves, rather than while readings were lost */
    bool unplugged;           /* a write of the last tick found no bus */
    bool unsent;              /* the goals of the last tick did not go out */
    bool torque_failed;       /* not every servo took the last torque command, or one has lost its torque */
    bool setting_refused;     /* because of a setting that it does not take */
    int32_t trouble_joint;    /* which, or whose answer was missing when a reading was lost, -1: not known */
    health_finding finding;   /* what the last question about the servos' health showed */
    bool unattended;          /* the supervisor's heartbeat is missing */
    bool unguarded;           /* the servos have no watchdog, and who stands in for it is gone */
    bool damaged;             /* a mapped file was cut short */
    uint64_t writer;          /* of the ring's chunks, 0: none yet */
    pilot_command command;
    bool malformed;           /* a chunk that ring_check refused came; may be set until pilot_end */
    int64_t patience_ns;      /* 3 x p99 of an inference as announced, 0: none */
    bool plan_then_move;
    int64_t dropped_through;  /* ring_notice */
} pilot_input;

typedef struct {
    pilot_state state;
    pilot_reason reason;
    int32_t joint; /* of the reason, -1: none */
    bool latched;
    pilot_answer answer; /* to the command */
    schedule_action action;
    guard_result guard;
    bool write;          /* guard.goals go to the bus */
    pilot_torque torque; /* after the goals were written */
    bool clear_watchdog; /* before the goals are written */
    int32_t from[ARM_JOINTS_MAX]; /* goals before this tick's step; with clear_watchdog the servos' first one */
    uint32_t reboot;     /* servos (bits) to reboot, after the goals were written */
    bool done;           /* stopped: the loop ends */
} pilot_output;

typedef struct {
    pilot_config config;
    guard guard;
    schedule schedule;
    pilot_state state;
    pilot_reason reason;
    int32_t joint;
    bool latched;
    bool moved;          /* a chunk was executed since arming */
    bool torque;         /* asked for by us */
    bool let_go;         /* torque was switched off by us; before we arm, the servos may hold the arm all the same */
    bool stopping;
    bool present_known;
    int32_t present[ARM_JOINTS_MAX];
    int64_t present_ns;
    int64_t patience_ns; /* age limit and latch time in force */
    int64_t idle_ns;     /* since when no action has been due */
    int64_t lost_ns;     /* since when readings are lost, -1: they are not */
    int32_t lost;        /* readings lost in a row */
    uint32_t alerts;     /* joints (bits) with an alert in the last reading */
    double parking[ARM_JOINTS_MAX]; /* where the slow move has come to, counts */
    bool park_failed;           /* it was given up since arming */
    bool cooled;                /* a hot servo has parked the arm since arming */
    bool unattended, unguarded; /* at the last tick */
    uint32_t limp;              /* joints (bits) known to have no torque */
    int64_t recover_until_ns;   /* a reboot was asked for: until then torque comes back with the alert gone; 0: no */
    uint64_t writer;            /* whose chunks are taken since arming */
    press press;
    bool suspect_known;         /* the last reading was further away than a joint can travel */
    int32_t suspect[ARM_JOINTS_MAX];
    int64_t suspect_ns;
} pilot;

guard_config_error pilot_init(pilot *self, const pilot_config *config, int *joint);

/* First part of a tick: takes note of reading and command. */
void pilot_begin(pilot *self, const pilot_input *input, pilot_output *output);
/* Offers a chunk of the right shape, any number of times between begin and end. */
chunk_verdict pilot_offer(pilot *self, const pilot_input *input, const chunk *data);
/* Last part of a tick: the goals. */
void pilot_end(pilot *self, const pilot_input *input, pilot_output *output);
