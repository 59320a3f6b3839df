/* SPDX-License-Identifier: Apache-2.0 */
#include "flow.h"
#include "clock.h"

#include <string.h>

static bool timed(flow *loop, const flow_graph *graph, int64_t *duration_ns)
{
    int64_t start = clock_now_ns();
    bool ran = graph->run(graph->context);
    *duration_ns = clock_now_ns() - start;
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

/* Float by float in this order, so that the Python loop has the same bits. */
static float path_at(const flow_request *request, size_t i, double t)
{
    float noise_share = (float)t, target_share = (float)(1.0 - t);
    return noise_share * request->noise[i] + target_share * request->target[i];
}

void flow_path(const flow_request *request, float *path, size_t cells, double t)
{
    for (size_t i = 0; i < cells; i++)
        path[i] = request->target == NULL ? 0 : path_at(request, i, t);
}

void flow_tie(const flow_request *request, float *x, size_t rows, size_t columns, double t)
{
    if (request->target == NULL)
        return;
    for (size_t i = 0; i < rows * columns; i++)
        x[i] += request->weights[i / columns] * (path_at(request, i, t) - x[i]);
}

/* What the step graph reads of step k besides x, the same for every row. */
static void give_step(flow *loop, const flow_request *request, int k, bool last)
{
    const flow_moment *moment = &request->moments[k];
    for (size_t row = 0; row < loop->step_rows; row++) {
        memcpy(loop->time_bias + row * loop->width, request->bias_rows + (size_t)k * loop->width,
               loop->width * sizeof(float));
        loop->dt[row] = (float)(last ? moment->rest : moment->dt);
    }
    if (loop->target == NULL)
        flow_tie(request, loop->x[k % 2], loop->rows, loop->columns, moment->t);
    else if (request->target != NULL)
        flow_path(request, loop->target, loop->rows * loop->columns, moment->t);
}

static flow_outcome denoise(flow *loop, const flow_request *request, flow_result *result)
{
    int k = 0, n = request->steps;
    memcpy(loop->x[0], request->noise, loop->rows * loop->columns * sizeof(float));
    if (loop->weights != NULL && request->weights != NULL)
        memcpy(loop->weights, request->weights, loop->rows * sizeof(float));
    else if (loop->weights != NULL)
        memset(loop->weights, 0, loop->rows * sizeof(float));
    for (bool last = false; k < n && !last; k++) {
        flow_signal signal = k == 0 ? FLOW_CONTINUE : flow_asked(request);
        if (signal == FLOW_ABANDON)
            return FLOW_ABANDONED;
        last = signal == FLOW_FINISH;
        give_step(loop, request, k, last);
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
