/* The flow loop: state token, then n Euler steps from noise (t = 1) to actions (t = 0).
 *
 * x <- x + dt * v(x, t), dt = -1/n, t = 1, 1 - 1/n, ..., 1/n. The step graph does
 * the update itself in float32; this loop gives it the time bias of the step,
 * swaps two buffers, and may stop between steps. No allocation, no interpreter.
 */
#ifndef VLA_FLOW_H
#define VLA_FLOW_H

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
    float *time_bias; /* the step graph's input, `width` floats */
    float *dt;        /* the step graph's input, one float */
    size_t width;
} flow;

typedef enum { FLOW_DONE, FLOW_ABANDONED, FLOW_FAILED } flow_outcome;

typedef struct {
    flow_outcome outcome;
    int steps; /* steps completed; the result lies in x[steps % 2] */
    int64_t prefix_ns, state_ns;
    int64_t step_ns[FLOW_MAX_STEPS];
} flow_result;

typedef struct {
    bool refresh_prefix;
    int n;                           /* 1..FLOW_MAX_STEPS */
    const float *bias_rows;          /* [n, width], the time bias of every step */
    const volatile int32_t *abandon; /* not zero: stop before the next graph; NULL: never */
} flow_request;

/* Runs [prefix,] state and n steps. The caller has put noise into x[0]. */
void flow_run(flow *loop, const flow_request *request, flow_result *result);

#endif
