/* SPDX-License-Identifier: Apache-2.0 */
/* Prefix, state and flow loop as captured CUDA graphs, launched without the interpreter.
 *
 * Everything a prefix writes exists twice, as sides 0 and 1. The prefix graph of one
 * side runs on the low-priority stream while the flow loop reads the other side on
 * the high-priority one. Two events a side keep the order: `filled` (recorded on the
 * low stream behind a prefix; the high stream waits for it) and `idle` (recorded on
 * the high stream behind the last reader; the low stream waits for it before the
 * side is overwritten). Pinned inputs of a prefix are read until `filled`.
 *
 * A chunk is: `begin` takes `chunk_in` to the device and x = noise; graphs of
 * CUDA_GROUP steps (`single` for an odd one, or for the rest of a hurried chunk), each
 * step copying its row of `step_in` to the device and taking the Euler step, which ties
 * x first; `end` brings x to `x_out`. Groups take turns between two graphs with rows of
 * their own, so that one is filled and launched while the other runs.
 */
#pragma once

#include "cuda_driver.h"
#include "flow.h"

enum {
    CUDA_GROUP = 2,                   /* steps a graph */
    CUDA_ROWS = 2 * CUDA_GROUP + 1,   /* rows of step_in: of turn 0, of turn 1, of `single` */
    CUDA_ALIGN = 256 / sizeof(float), /* floats: TensorRT's tensors begin at multiples of 256 bytes */
};

/* The pinned layouts, in floats. A step's row: time bias [rows, width], then dt [rows] and the tie's path
 * [rows, columns]. chunk_in: noise, then the tie's weights. */
typedef struct {
    size_t rows, columns, width; /* chunk, action, time bias */
    size_t dt, target, step_floats;
    size_t weights, chunk_floats;
} cuda_layout;

typedef struct {
    cuda_driver *driver;
    cuda_stream high, low;
    cuda_event filled[2], idle[2], stepped[2];
    cuda_exec prefix[2], state[2]; /* by side */
    cuda_exec begin, end;
    cuda_exec group[2][2]; /* by side and turn */
    cuda_exec single[2];   /* by side */
    cuda_layout layout;
    float *chunk_in, *step_in; /* pinned; step_in: [CUDA_ROWS, step_floats] */
    float *x_out;              /* pinned, [rows, columns] */
} cuda_loop;

cuda_layout cuda_loop_layout(size_t rows, size_t columns, size_t width);

/* Starts the prefix of `side` on the low stream and returns at once. */
bool cuda_loop_refresh(cuda_loop *loop, int side);

/* Waits for the prefix of `side` that was started last. */
bool cuda_loop_wait(cuda_loop *loop, int side, int64_t *waited_ns);

/* Runs [the prefix and] the state row of `side`; returns when they are complete. */
bool cuda_loop_encode(cuda_loop *loop, int side, bool prefix, int64_t *prefix_ns, int64_t *state_ns);

/* Runs the steps on what `side` holds; the result lies in x_out. The signal is read before every launch but the first;
 * launches go one ahead, so that an abandoned chunk costs at most two graphs' steps more. Steps of one graph share
 * its time in equal parts. */
void cuda_loop_denoise(cuda_loop *loop, int side, const flow_request *request, flow_result *result);
