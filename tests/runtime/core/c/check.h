/* SPDX-License-Identifier: Apache-2.0 */
/* What every C test has: a check that says where it failed and ends the test with 1, and an arm of so many joints. */
#ifndef VLA_CHECK_H
#define VLA_CHECK_H

#include <stdio.h>

enum { JOINTS = 6 };

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

#endif
