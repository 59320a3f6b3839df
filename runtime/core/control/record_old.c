/* SPDX-License-Identifier: Apache-2.0 */
#include "record_old.h"

#include <stddef.h>
#include <string.h>

enum { TIMES = offsetof(record_tick, read_result) };
_Static_assert(sizeof(record_tick_v4) == 232 && offsetof(record_tick_v4, rest) == 168, "as it was written");
_Static_assert(offsetof(record_tick, reboot) - TIMES == sizeof(((record_tick_v4 *)0)->rest), "laid out alike");

size_t record_old_config_bytes(int version)
{
    switch (version) {
    case 2:
        return sizeof(record_config_v2);
    case 3:
        return offsetof(record_config_v4, action_ns);
    case OLD_VERSION:
        return sizeof(record_config_v4);
    default:
        return 0;
    }
}

/* There was one arm, and nothing named it. */
static void name_arm(pilot_config *now)
{
    static const char names[OLD_JOINTS][ARM_NAME_BYTES] = {"shoulder_pan", "shoulder_lift", "elbow_flex",
                                                           "wrist_flex",   "wrist_roll",    "gripper"};
    memcpy(now->arm, "koch", sizeof "koch");
    memcpy(now->names, names, sizeof names);
}

static pilot_config config_v2(const void *config)
{
    record_config_v2 old;
    pilot_config now = {.joints = OLD_JOINTS, .guard_version = GUARD_WHOLE_COUNTS};
    memcpy(&old, config, sizeof old);
    memcpy(now.limits, old.limits, sizeof old.limits);
    now.schedule.session = old.schedule.session;
    now.period_ns = now.action_ns = old.period_ns;
    name_arm(&now);
    return now;
}

pilot_config record_old_config(int version, const void *config)
{
    if (version == 2)
        return config_v2(config);
    record_config_v4 old = {0};
    memcpy(&old, config, record_old_config_bytes(version));
    pilot_config now = {
        .joints = OLD_JOINTS,
        .schedule = {.session = old.schedule.session,
                     .joints = OLD_JOINTS,
                     .blend_actions = old.schedule.blend_actions},
        .period_ns = old.period_ns,
        .patience_min_ns = old.patience_min_ns,
        .patience_max_ns = old.patience_max_ns,
        .reads_latch_ns = old.reads_latch_ns,
        .has_park = old.has_park,
        .park_speed = old.park_speed,
        .stall_ns = old.stall_ns,
        .action_ns = version == 3 ? old.period_ns : old.action_ns,
        .guard_version = version == 3 ? GUARD_WHOLE_COUNTS : old.guard_version,
        .rounds_corners = old.rounds_corners,
    };
    memcpy(now.limits, old.limits, sizeof old.limits);
    memcpy(now.schedule.digest, old.schedule.digest, sizeof old.schedule.digest);
    memcpy(now.schedule.rest_counts, old.schedule.rest_counts, sizeof old.schedule.rest_counts);
    memcpy(now.park, old.park, sizeof old.park);
    memcpy(now.press, old.press, sizeof old.press);
    memcpy(now.health, old.health, sizeof old.health);
    memcpy(now.travel, old.travel, sizeof old.travel);
    name_arm(&now);
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
