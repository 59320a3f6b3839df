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

static bool timed(flow_graph *graph, int64_t *duration_ns)
{
    int64_t start = now_ns();
    bool ran = graph->run(graph->context);
    *duration_ns = now_ns() - start;
    return ran;
}

static bool abandoned(const flow_request *request)
{
    return request->abandon != NULL && __atomic_load_n(request->abandon, __ATOMIC_ACQUIRE) != 0;
}

static void place_state_rows(const flow *loop)
{
    for (size_t i = 0; i < loop->copy_count; i++) {
        const flow_copy *copy = &loop->copies[i];
        for (size_t head = 0; head < copy->heads; head++)
            memcpy(copy->to + head * copy->stride, copy->from + head * copy->bytes, copy->bytes);
    }
}

static flow_outcome run(flow *loop, const flow_request *request, flow_result *result)
{
    if (abandoned(request))
        return FLOW_ABANDONED;
    if (request->refresh_prefix && !timed(&loop->prefix, &result->prefix_ns))
        return FLOW_FAILED;
    if (abandoned(request))
        return FLOW_ABANDONED;
    if (!timed(&loop->state, &result->state_ns))
        return FLOW_FAILED;
    place_state_rows(loop);
    *loop->dt = -1.0f / (float)request->n;
    for (int k = 0; k < request->n; k++) {
        if (abandoned(request))
            return FLOW_ABANDONED;
        memcpy(loop->time_bias, request->bias_rows + (size_t)k * loop->width, loop->width * sizeof(float));
        if (!timed(&loop->step[k % 2], &result->step_ns[k]))
            return FLOW_FAILED;
        result->steps = k + 1;
    }
    return FLOW_DONE;
}

void flow_run(flow *loop, const flow_request *request, flow_result *result)
{
    memset(result, 0, sizeof *result);
    result->outcome = run(loop, request, result);
}
