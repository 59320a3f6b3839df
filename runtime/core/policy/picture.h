/* SPDX-License-Identifier: Apache-2.0 */
/* A camera picture to the network's pixels: divided by 255, resized bilinearly, padded left and above, then * 2 - 1.
 *
 * Where each target row and column is sampled is the caller's (runtime/inference/picture.py); every number is rounded
 * as numpy rounds it there, so both give the same bits. No allocation.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { PICTURE_CHANNELS = 3 };

/* Sample i: first[i] and second[i] of the source, (1 - weight[i]) and weight[i] of them. */
typedef struct {
    const int32_t *first, *second;
    const float *weight;
    size_t count;
} picture_samples;

typedef struct {
    picture_samples rows, columns;
    size_t source_height, source_width; /* of `image`, [height, width, 3] */
    size_t target_height, target_width; /* of `pixels`, [3, height, width]; not below the samples' counts */
} picture_plan;

/* `row`: scratch of 3 * source_width floats. */
void picture_scale(const picture_plan *plan, const uint8_t *image, float *row, float *pixels);
