/* SPDX-License-Identifier: Apache-2.0 */
/* Flight records of earlier builds: arms had six joints, a cell 256 bytes. */
#ifndef VLA_RECORD_OLD_H
#define VLA_RECORD_OLD_H

#include "record.h"

enum { OLD_JOINTS = 6, OLD_VERSION = 4 };

/* Versions 3 and 4; of 3 up to action_ns. */
typedef struct {
    guard_limits limits[OLD_JOINTS];
    struct {
        uint64_t session;
        uint8_t digest[DIGEST_BYTES];
        int32_t blend_actions, rest_counts[OLD_JOINTS];
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

/* What version 2 knew of the pilot's configuration. */
typedef struct {
    guard_limits limits[OLD_JOINTS];
    struct {
        uint64_t session;
        uint8_t digest[DIGEST_BYTES];
        int32_t handover, blend_ticks, rest_counts[OLD_JOINTS];
    } schedule;
    int64_t period_ns, patience_min_ns, patience_max_ns, reads_latch_ns;
    bool has_park;
    int32_t park[OLD_JOINTS];
    double park_speed;
} record_config_v2;

/* The arrays stood between the times and the rest, which is laid out as it is now. */
typedef struct {
    int64_t times[6];
    int32_t position[OLD_JOINTS], velocity[OLD_JOINTS], goals[OLD_JOINTS];
    float action[OLD_JOINTS];
    int16_t load[OLD_JOINTS];
    uint8_t alert[OLD_JOINTS], verdicts[OLD_JOINTS];
    uint8_t rest[64];
} record_tick_v4;

/* Bytes of an old version's configuration, which its CRC covers; 0: no such version. */
size_t record_old_config_bytes(int version);
/* The configuration in its header. */
pilot_config record_old_config(int version, const void *config);
/* The tick in a cell; what its version did not know is as if it had not happened. */
record_tick record_old_tick(int version, const uint8_t *payload);

#endif
