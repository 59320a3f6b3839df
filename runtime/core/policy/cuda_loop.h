/* Prefix, state and flow loop as captured CUDA graphs, launched without the interpreter.
 *
 * Everything a prefix writes exists twice, as sides 0 and 1. The prefix graph of one
 * side runs on the low-priority stream while the flow loop reads the other side on
 * the high-priority one. Two events a side keep the order: `filled` (recorded on the
 * low stream behind a prefix; the high stream waits for it) and `idle` (recorded on
 * the high stream behind the last reader; the low stream waits for it before the
 * side is overwritten). Pinned inputs of a prefix are read until `filled`.
 */
#ifndef VLA_CUDA_LOOP_H
#define VLA_CUDA_LOOP_H

#include "cuda_driver.h"
#include "flow.h"

/* The captured steps of one side and one step count n. */
typedef struct {
    int count;                      /* n; 0: nothing is captured */
    cuda_exec whole;                /* pinned x_in -> n steps -> pinned x_out */
    cuda_exec step[FLOW_MAX_STEPS]; /* step k alone: x[k % 2] -> x[(k + 1) % 2] */
    uint64_t dt[FLOW_MAX_STEPS];    /* device address of the float that step k reads, -1/n */
    const float *finish;            /* pinned: -(n - k)/n for each k, then -1/n */
} cuda_steps;

typedef struct {
    cuda_driver *driver;
    cuda_stream high, low;
    cuda_event filled[2], idle[2], stepped[2];
    cuda_exec prefix[2], state[2];
    float *x_in, *x_out; /* pinned, [rows, columns] */
    uint64_t x[2];       /* device */
    size_t rows, columns;
    cuda_steps steps[2][FLOW_MAX_STEPS + 1]; /* by side and n */
} cuda_loop;

/* Starts the prefix of `side` on the low stream and returns at once. */
bool cuda_loop_refresh(cuda_loop *loop, int side);

/* Runs [the prefix and] the state row of `side`; returns when they are complete. */
bool cuda_loop_encode(cuda_loop *loop, int side, bool prefix, int64_t *prefix_ns, int64_t *state_ns);

/* Runs the steps on what `side` holds; the result lies in x_out. Of the request, bias_rows is not used: the rows are on
 * the device. Without signal and target it is one launch, whose time is told in equal shares; with a signal, steps are
 * launched one ahead, so that an abandoned chunk costs at most one step more. */
void cuda_loop_denoise(cuda_loop *loop, int side, const flow_request *request, flow_result *result);

#endif
