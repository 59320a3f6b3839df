/* SPDX-License-Identifier: Apache-2.0 */
/* The flow loop: state token, then n Euler steps from noise (t = 1) to actions (t = 0).
 *
 * x <- x + dt * v(x, t) from t = 1 down to 0, in steps of any sizes. The step graph does
 * the update itself in float32; this loop gives it the time bias and dt of the step for
 * every row of the chunk, swaps two buffers, and may stop between steps. No allocation,
 * no interpreter.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FLOW_MAX_STEPS = 64, FLOW_MAX_COPIES = 256 };

/* A graph with its buffers bound; run returns false when the engine failed. */
typedef struct {
    void *context;
    bool (*run)(void *context);
} flow_graph;

/* The state token's row of one K or V tensor: `heads` pieces of `bytes`, contiguous
 * in `from`, `stride` bytes apart in `to`. */
typedef struct {
    char *to;
    const char *from;
    size_t heads, bytes, stride;
} flow_copy;

typedef struct {
    flow_graph prefix; /* run is NULL when it is never run from here */
    flow_graph state;
    flow_graph step[2]; /* [0] reads x[0] and writes x[1], [1] the other way */
    flow_copy copies[FLOW_MAX_COPIES];
    size_t copy_count;
    float *x[2];             /* [rows, columns] each */
    float *time_bias;        /* the step graph's input, [step_rows, width] */
    float *dt;               /* the step graph's input, [step_rows] */
    float *target, *weights; /* its tie, [rows, columns] and [rows]; both NULL where it has none */
    size_t rows, columns, width;
    size_t step_rows; /* `rows`; 1 in graphs that have no tie */
    const flow_graph *failed; /* the graph that made a call return FLOW_FAILED */
} flow;

typedef enum { FLOW_DONE, FLOW_ABANDONED, FLOW_FAILED } flow_outcome;

/* Asked between steps: go on, take the rest of the way in one step, or give up. */
typedef enum { FLOW_CONTINUE = 0, FLOW_FINISH = 1, FLOW_ABANDON = 2 } flow_signal;

/* One step: the flow time it begins at, how far it goes, and how far the whole rest of the way is. */
typedef struct {
    double t, dt, rest;
} flow_moment;

typedef struct {
    int steps;                      /* 1..FLOW_MAX_STEPS */
    const float *noise;             /* [rows, columns] */
    const float *bias_rows;         /* [steps, width] */
    const flow_moment *moments;     /* [steps] */
    const float *target, *weights;  /* inpaint: [rows, columns] and [rows]; both NULL without it */
    const volatile int32_t *signal; /* a flow_signal written by another thread; NULL: never */
} flow_request;

typedef struct {
    flow_outcome outcome;
    int steps; /* steps completed; the result lies in x[steps % 2] */
    int64_t step_ns[FLOW_MAX_STEPS];
} flow_result;

/* What the signal of a request asks for now. */
static inline flow_signal flow_asked(const flow_request *request)
{
    return request->signal == NULL ? FLOW_CONTINUE : (flow_signal)__atomic_load_n(request->signal, __ATOMIC_ACQUIRE);
}

/* Runs [prefix and] state and puts the state token's rows into the K/V tensors. */
flow_outcome flow_encode(flow *loop, bool prefix, int64_t *prefix_ns, int64_t *state_ns);

/* Runs the steps on the K/V that flow_encode left.
 *
 * With inpaint, a row of weight w is drawn to the path t * noise + (1 - t) * target
 * before every step (by the step graph, where it has a tie) and at the end: w = 1 is
 * frozen to the target, 0 is free. */
void flow_denoise(flow *loop, const flow_request *request, flow_result *result);

/* The path of the inpaint at one moment, t = 1 at noise and 0 at actions; zeros without a target. */
void flow_path(const flow_request *request, float *path, size_t cells, double t);

/* x drawn to that path; nothing without a target. */
void flow_tie(const flow_request *request, float *x, size_t rows, size_t columns, double t);
