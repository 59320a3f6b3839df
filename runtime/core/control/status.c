/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

static const uint64_t magic = 0x3354415453414c56; /* "VLASTAT3" */

int status_open(shared_file *file, const char *path, bool writer)
{
    int failure = shared_open_marked(file, path, sizeof(status_file), writer, magic);
    if (failure == 0 && writer) /* what an earlier run, or damage, left is no status of ours */
        shared_store(&((status_file *)file->memory)->slot.sequence, 0);
    return failure;
}

void status_publish(status_file *file, const status *value)
{
    shared_write(&file->slot, (uint32_t *)&file->value, value, sizeof *value / 4);
}

bool status_read(const status_file *file, status *out)
{
    for (int i = 0; i < 100000; i++)
        if (shared_read(&file->slot, out, (const uint32_t *)&file->value, sizeof *out / 4))
            return shared_load(&file->slot.sequence) != 0;
    return false;
}

static const char *name(const char *const *names, int32_t n, int32_t value)
{
    return value >= 0 && value < n ? names[value] : "unknown";
}

const char *status_state_name(int32_t state)
{
    static const char *const names[] = {"disarmed", "planning", "moving", "hold", "parking", "fault"};
    return name(names, PILOT_FAULT + 1, state);
}

const char *status_reason_name(int32_t reason)
{
    static const char *const names[] = {"",         "operator", "no_action", "reads_lost",  "alert",      "unplugged",
                                        "watchdog", "outside",  "malformed", "parked",      "torque",     "stall",
                                        "setting",  "deaf",     "voltage",   "temperature", "supervisor", "writer",
                                        "files",    "idle",     "guardian"};
    return name(names, REASONS, reason);
}

const char *status_verdict_name(int32_t verdict)
{
    static const char *const names[] = {
        "passed",       "clamped_position", "clamped_velocity",   "clamped_acceleration", "clamped_jerk",
        "clamped_step", "clamped_tracking", "refused_not_finite", "refused_joints",       "refused_no_reading",
    };
    return name(names, GUARD_VERDICTS, verdict);
}

const char *status_chunk_name(int32_t verdict)
{
    static const char *const names[] = {
        "taken", "torn",   "shape", "not_finite", "session", "digest",
        "order", "future", "age",   "late",       "moved",   "not_armed",
    };
    return name(names, CHUNK_VERDICTS, verdict);
}
