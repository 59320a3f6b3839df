#define _POSIX_C_SOURCE 200809L
#include "cuda_loop.h"

#include <string.h>
#include <time.h>

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool launch(cuda_loop *loop, cuda_exec exec, cuda_stream stream)
{
    return cuda_ok(loop->driver, loop->driver->call.launch(exec, stream), "cuGraphLaunch");
}

static bool record(cuda_loop *loop, cuda_event event, cuda_stream stream)
{
    return cuda_ok(loop->driver, loop->driver->call.event_record(event, stream), "cuEventRecord");
}

static bool order(cuda_loop *loop, cuda_stream stream, cuda_event event)
{
    return cuda_ok(loop->driver, loop->driver->call.stream_wait(stream, event, 0), "cuStreamWaitEvent");
}

static bool reached(cuda_loop *loop, cuda_event event)
{
    return cuda_ok(loop->driver, loop->driver->call.event_sync(event), "cuEventSynchronize");
}

static bool finished(cuda_loop *loop)
{
    return cuda_ok(loop->driver, loop->driver->call.stream_sync(loop->high), "cuStreamSynchronize");
}

static bool to_device(cuda_loop *loop, uint64_t device, const void *host, size_t bytes)
{
    return cuda_ok(loop->driver, loop->driver->call.to_device(device, host, bytes, loop->high), "cuMemcpyHtoDAsync");
}

static bool to_host(cuda_loop *loop, uint64_t device)
{
    size_t bytes = loop->rows * loop->columns * sizeof(float);
    return cuda_ok(loop->driver, loop->driver->call.to_host(loop->x_out, device, bytes, loop->high), "cuMemcpyDtoHAsync");
}

static bool refresh(cuda_loop *loop, int side)
{
    return order(loop, loop->low, loop->idle[side]) && launch(loop, loop->prefix[side], loop->low)
        && record(loop, loop->filled[side], loop->low);
}

bool cuda_loop_refresh(cuda_loop *loop, int side)
{
    return cuda_enter(loop->driver) && refresh(loop, side);
}

bool cuda_loop_encode(cuda_loop *loop, int side, bool prefix, int64_t *prefix_ns, int64_t *state_ns)
{
    int64_t start = now_ns(), middle = start;
    *prefix_ns = *state_ns = 0;
    if (!cuda_enter(loop->driver) || (prefix && !refresh(loop, side)) || !reached(loop, loop->filled[side]))
        return false;
    middle = now_ns();
    if (!order(loop, loop->high, loop->filled[side]) || !launch(loop, loop->state[side], loop->high)
        || !record(loop, loop->idle[side], loop->high) || !finished(loop))
        return false;
    *prefix_ns = prefix ? middle - start : 0;
    *state_ns = now_ns() - middle;
    return true;
}

static bool run_whole(cuda_loop *loop, const cuda_steps *steps, int side, flow_result *result)
{
    int64_t start = now_ns();
    if (!launch(loop, steps->whole, loop->high) || !record(loop, loop->idle[side], loop->high) || !finished(loop))
        return false;
    int64_t took = now_ns() - start;
    for (int k = 0; k < steps->count; k++)
        result->step_ns[k] = took / steps->count;
    result->steps = steps->count;
    return true;
}

static flow_signal asked(const flow_request *request)
{
    return request->signal == NULL ? FLOW_CONTINUE : (flow_signal)__atomic_load_n(request->signal, __ATOMIC_ACQUIRE);
}

static void tie(const cuda_loop *loop, const flow_request *request, float *x, double t)
{
    flow_tie(request, x, loop->rows, loop->columns, t);
}

/* x[k % 2] comes to the host, is drawn to the path and goes back. */
static bool tie_on_host(cuda_loop *loop, const flow_request *request, int k)
{
    if (!to_host(loop, loop->x[k % 2]) || !finished(loop))
        return false;
    tie(loop, request, loop->x_out, 1.0 - (double)k / request->steps);
    return to_device(loop, loop->x[k % 2], loop->x_out, loop->rows * loop->columns * sizeof(float));
}

/* Step k; the last one of a hurried chunk takes the rest of the way. */
static bool enqueue(cuda_loop *loop, const cuda_steps *steps, int k, bool rest)
{
    if (rest && !to_device(loop, steps->dt[k], &steps->finish[k], sizeof(float)))
        return false;
    if (!launch(loop, steps->step[k], loop->high))
        return false;
    if (rest && !to_device(loop, steps->dt[k], &steps->finish[steps->count], sizeof(float)))
        return false;
    return record(loop, loop->stepped[k % 2], loop->high);
}

static flow_outcome run_steps(cuda_loop *loop, const cuda_steps *steps, const flow_request *request, flow_result *result)
{
    int k = 0, n = steps->count;
    int64_t before = now_ns();
    tie(loop, request, loop->x_in, 1.0);
    if (!to_device(loop, loop->x[0], loop->x_in, loop->rows * loop->columns * sizeof(float)))
        return FLOW_FAILED;
    for (bool last = false; k < n && !last; k++) {
        flow_signal signal = k == 0 ? FLOW_CONTINUE : asked(request);
        if (signal == FLOW_ABANDON) {
            result->steps = k;
            return finished(loop) ? FLOW_ABANDONED : FLOW_FAILED;
        }
        last = signal == FLOW_FINISH;
        if (k > 0 && request->target != NULL && !tie_on_host(loop, request, k))
            return FLOW_FAILED;
        if (!enqueue(loop, steps, k, last) || (k > 0 && !reached(loop, loop->stepped[(k - 1) % 2])))
            return FLOW_FAILED;
        if (k > 0) {
            result->step_ns[k - 1] = now_ns() - before;
            before += result->step_ns[k - 1];
        }
    }
    if (!to_host(loop, loop->x[k % 2]) || !finished(loop))
        return FLOW_FAILED;
    result->step_ns[k - 1] = now_ns() - before;
    result->steps = k;
    tie(loop, request, loop->x_out, 0.0);
    return FLOW_DONE;
}

void cuda_loop_denoise(cuda_loop *loop, int side, const flow_request *request, flow_result *result)
{
    const cuda_steps *steps = &loop->steps[side][request->steps];
    memset(result, 0, sizeof *result);
    result->outcome = FLOW_FAILED;
    if (!cuda_enter(loop->driver) || !order(loop, loop->high, loop->filled[side]))
        return;
    memcpy(loop->x_in, request->noise, loop->rows * loop->columns * sizeof(float));
    if (request->target == NULL && request->signal == NULL) {
        result->outcome = run_whole(loop, steps, side, result) ? FLOW_DONE : FLOW_FAILED;
        return;
    }
    result->outcome = run_steps(loop, steps, request, result);
    if (result->outcome != FLOW_FAILED && !record(loop, loop->idle[side], loop->high))
        result->outcome = FLOW_FAILED;
}
