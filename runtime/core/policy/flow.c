#define _POSIX_C_SOURCE 200809L
#include "flow.h"

#include <string.h>
#include <time.h>

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool timed(flow *loop, const flow_graph *graph, int64_t *duration_ns)
{
    int64_t start = now_ns();
    bool ran = graph->run(graph->context);
    *duration_ns = now_ns() - start;
    if (!ran)
        loop->failed = graph;
    return ran;
}

static void place_state_rows(const flow *loop)
{
    for (size_t i = 0; i < loop->copy_count; i++) {
        const flow_copy *copy = &loop->copies[i];
        for (size_t head = 0; head < copy->heads; head++)
            memcpy(copy->to + head * copy->stride, copy->from + head * copy->bytes, copy->bytes);
    }
}

flow_outcome flow_encode(flow *loop, bool prefix, int64_t *prefix_ns, int64_t *state_ns)
{
    *prefix_ns = *state_ns = 0;
    if (prefix && !timed(loop, &loop->prefix, prefix_ns))
        return FLOW_FAILED;
    if (!timed(loop, &loop->state, state_ns))
        return FLOW_FAILED;
    place_state_rows(loop);
    return FLOW_DONE;
}

static flow_signal asked(const flow_request *request)
{
    return request->signal == NULL ? FLOW_CONTINUE : (flow_signal)__atomic_load_n(request->signal, __ATOMIC_ACQUIRE);
}

/* Float by float in this order, so that the Python loop has the same bits. */
void flow_tie(const flow_request *request, float *x, size_t rows, size_t columns, double t)
{
    if (request->target == NULL)
        return;
    float noise_share = (float)t, target_share = (float)(1.0 - t);
    for (size_t row = 0; row < rows; row++) {
        for (size_t column = 0; column < columns; column++) {
            size_t i = row * columns + column;
            float path = noise_share * request->noise[i] + target_share * request->target[i];
            x[i] += request->weights[row] * (path - x[i]);
        }
    }
}

static flow_outcome denoise(flow *loop, const flow_request *request, flow_result *result)
{
    int k = 0, n = request->steps;
    memcpy(loop->x[0], request->noise, loop->rows * loop->columns * sizeof(float));
    for (bool last = false; k < n && !last; k++) {
        flow_signal signal = k == 0 ? FLOW_CONTINUE : asked(request);
        if (signal == FLOW_ABANDON)
            return FLOW_ABANDONED;
        last = signal == FLOW_FINISH;
        flow_tie(request, loop->x[k % 2], loop->rows, loop->columns, 1.0 - (double)k / n);
        memcpy(loop->time_bias, request->bias_rows + (size_t)k * loop->width, loop->width * sizeof(float));
        *loop->dt = (float)(-(double)(last ? n - k : 1) / n);
        if (!timed(loop, &loop->step[k % 2], &result->step_ns[k]))
            return FLOW_FAILED;
        result->steps = k + 1;
    }
    flow_tie(request, loop->x[result->steps % 2], loop->rows, loop->columns, 0.0);
    return FLOW_DONE;
}

void flow_denoise(flow *loop, const flow_request *request, flow_result *result)
{
    memset(result, 0, sizeof *result);
    result->outcome = denoise(loop, request, result);
}
