/* SPDX-License-Identifier: Apache-2.0 */
/* Flight records of earlier builds: arms had six joints, a cell 256 bytes. */
#include "record.h"

#include <stddef.h>
#include <string.h>

enum { OLD_JOINTS = 6 };

/* Versions 2 to 4: of 2 up to press, of 3 up to action_ns. */
typedef struct {
    guard_limits limits[OLD_JOINTS];
    struct {
        uint64_t session;
        uint8_t digest[DIGEST_BYTES];
        int32_t blend_actions, rest_counts[OLD_JOINTS]; /* of 2 another number of each */
    } schedule;
    int64_t period_ns, patience_min_ns, patience_max_ns, reads_latch_ns;
    bool has_park;
    int32_t park[OLD_JOINTS];
    double park_speed;
    press_limits press[OLD_JOINTS];
    int64_t stall_ns;
    health_limits health[OLD_JOINTS];
    double travel[OLD_JOINTS];
    int64_t action_ns;
    int32_t guard_version, rounds_corners; /* 0 before commit d887a43 */
} record_config_v4;

/* The arrays stood between the times and the rest, which is laid out as it is now. */
typedef struct {
    int64_t times[6];
    int32_t position[OLD_JOINTS], velocity[OLD_JOINTS], goals[OLD_JOINTS];
    float action[OLD_JOINTS];
    int16_t load[OLD_JOINTS];
    uint8_t alert[OLD_JOINTS], verdicts[OLD_JOINTS];
    uint8_t rest[64];
} record_tick_v4;

enum { TIMES = offsetof(record_tick, read_result) };
_Static_assert(sizeof(record_tick_v4) == 232 && offsetof(record_tick_v4, rest) == 168, "as it was written");
_Static_assert(offsetof(record_tick, reboot) - TIMES == sizeof(((record_tick_v4 *)0)->rest), "laid out alike");

size_t record_old_config_bytes(int version)
{
    switch (version) {
    case 2:
        return offsetof(record_config_v4, press);
    case 3:
        return offsetof(record_config_v4, action_ns);
    case RECORD_OLD_VERSION:
        return sizeof(record_config_v4);
    default:
        return 0;
    }
}

#define OF_THE_SAME_NAME(X)                                                                                            \
    X(period_ns) X(patience_min_ns) X(patience_max_ns) X(reads_latch_ns) X(has_park) X(park_speed) X(stall_ns)         \
    X(rounds_corners)
#define FROM_OLD(name) .name = old.name,

pilot_config record_old_config(int version, const void *config)
{
    /* There was one arm, and nothing named it. */
    static const char names[OLD_JOINTS][ARM_NAME_BYTES] = {"shoulder_pan", "shoulder_lift", "elbow_flex",
                                                           "wrist_flex",   "wrist_roll",    "gripper"};
    record_config_v4 old = {0};
    memcpy(&old, config, record_old_config_bytes(version));
    pilot_config now = {
        .joints = OLD_JOINTS,
        .schedule = {.session = old.schedule.session,
                     .joints = OLD_JOINTS,
                     .blend_actions = old.schedule.blend_actions},
        OF_THE_SAME_NAME(FROM_OLD)
        .action_ns = version == RECORD_OLD_VERSION ? old.action_ns : old.period_ns,
        .guard_version = version == RECORD_OLD_VERSION ? old.guard_version : GUARD_WHOLE_COUNTS,
        .arm = "koch",
    };
    memcpy(now.limits, old.limits, sizeof old.limits);
    memcpy(now.schedule.digest, old.schedule.digest, sizeof old.schedule.digest);
    memcpy(now.schedule.rest_counts, old.schedule.rest_counts, sizeof old.schedule.rest_counts);
    memcpy(now.park, old.park, sizeof old.park);
    memcpy(now.press, old.press, sizeof old.press);
    memcpy(now.health, old.health, sizeof old.health);
    memcpy(now.travel, old.travel, sizeof old.travel);
    memcpy(now.names, names, sizeof names);
    return now;
}

record_tick record_old_tick(int version, const uint8_t *payload)
{
    record_tick_v4 old;
    record_tick tick = {0};
    memcpy(&old, payload, sizeof old);
    memcpy(&tick, old.times, sizeof old.times);
    memcpy(&tick.read_result, old.rest, sizeof old.rest);
    memcpy(tick.position, old.position, sizeof old.position);
    memcpy(tick.velocity, old.velocity, sizeof old.velocity);
    memcpy(tick.goals, old.goals, sizeof old.goals);
    memcpy(tick.action, old.action, sizeof old.action);
    memcpy(tick.load, old.load, sizeof old.load);
    memcpy(tick.alert, old.alert, sizeof old.alert);
    memcpy(tick.verdicts, old.verdicts, sizeof old.verdicts);
    tick.reboot = tick.unguarded; /* where it lay then */
    tick.unguarded = 0;
    if (version == 2) {
        size_t from = offsetof(record_tick, setting_refused);
        memset((char *)&tick + from, 0, offsetof(record_tick, position) - from);
        tick.finding_joint = tick.trouble_joint = -1;
    }
    return tick;
}
