/* SPDX-License-Identifier: Apache-2.0 */
#include "press.h"

#include <stdlib.h>
#include <string.h>

void press_init(press *self, const press_limits *limits, int joints, int64_t stall_ns)
{
    memset(self, 0, sizeof *self);
    self->joints = joints;
    memcpy(self->limits, limits, (size_t)joints * sizeof *limits);
    self->stall_ns = stall_ns;
    for (int i = 0; i < self->joints; i++)
        self->pressing_ns[i] = -1;
}

void press_release(press *self)
{
    self->returned = 0;
}

static long long apart(int32_t a, int32_t b)
{
    return llabs((long long)a - b);
}

int press_stalled(press *self, const int32_t *goals, const int32_t *present, uint32_t without, int64_t now_ns)
{
    int stalled = -1;
    for (int i = 0; i < self->joints; i++) {
        if (apart(present[i], self->at[i]) > PRESS_STILL_COUNTS) {
            self->at[i] = present[i];
            self->at_ns[i] = now_ns;
        }
        bool presses =
            self->limits[i].stall > 0 && !(without >> i & 1) && apart(goals[i], present[i]) > self->limits[i].stall;
        if (!presses) {
            self->pressing_ns[i] = -1;
        } else if (self->pressing_ns[i] < 0 || apart(present[i], self->from[i]) > PRESS_MOVED_COUNTS) {
            self->pressing_ns[i] = now_ns;
            self->from[i] = present[i];
        } else if (now_ns - self->pressing_ns[i] >= self->stall_ns && stalled < 0) {
            stalled = i;
        }
    }
    return stalled;
}

bool press_lead_back(press *self, const int32_t *goals, const int32_t *present, uint32_t without, int64_t now_ns,
                     int32_t *wish)
{
    bool moves = false;
    for (int i = 0; i < self->joints; i++) {
        if (!(self->returned >> i & 1) && now_ns - self->at_ns[i] >= PRESS_STILL_NS) {
            int64_t lead = (int64_t)goals[i] - present[i], gravity = self->limits[i].gravity;
            self->rest[i] = lead > gravity    ? present[i] + (int32_t)gravity
                            : lead < -gravity ? present[i] - (int32_t)gravity
                                              : goals[i];
            self->returned |= 1u << i;
        }
        bool known = (self->returned >> i & 1) && !(without >> i & 1);
        wish[i] = known ? self->rest[i] : goals[i];
        moves = moves || wish[i] != goals[i];
    }
    return moves;
}
