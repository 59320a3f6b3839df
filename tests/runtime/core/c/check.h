/* SPDX-License-Identifier: Apache-2.0 */
/* What every C test has: a check that says where it failed and ends the test with 1, and an arm of so many joints. */
#pragma once

#include <stdio.h>

enum { JOINTS = 6 };

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)
