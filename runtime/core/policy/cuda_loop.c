/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_loop.h"
#include "clock.h"

#include <string.h>

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

static bool refresh(cuda_loop *loop, int side)
{
    return order(loop, loop->low, loop->idle[side]) && launch(loop, loop->prefix[side], loop->low)
        && record(loop, loop->filled[side], loop->low);
}

bool cuda_loop_refresh(cuda_loop *loop, int side)
{
    return cuda_enter(loop->driver) && refresh(loop, side);
}

bool cuda_loop_wait(cuda_loop *loop, int side, int64_t *waited_ns)
{
    int64_t start = clock_now_ns();
    bool done = cuda_enter(loop->driver) && reached(loop, loop->filled[side]);
    *waited_ns = clock_now_ns() - start;
    return done;
}

bool cuda_loop_encode(cuda_loop *loop, int side, bool prefix, int64_t *prefix_ns, int64_t *state_ns)
{
    int64_t start = clock_now_ns(), middle = start;
    *prefix_ns = *state_ns = 0;
    if (!cuda_enter(loop->driver) || (prefix && !refresh(loop, side)) || !reached(loop, loop->filled[side]))
        return false;
    middle = clock_now_ns();
    if (!order(loop, loop->high, loop->filled[side]) || !launch(loop, loop->state[side], loop->high)
        || !record(loop, loop->idle[side], loop->high) || !finished(loop))
        return false;
    *prefix_ns = prefix ? middle - start : 0;
    *state_ns = clock_now_ns() - middle;
    return true;
}

static size_t padded(size_t floats)
{
    return (floats + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

cuda_layout cuda_loop_layout(size_t rows, size_t columns, size_t width)
{
    size_t cells = padded(rows * columns), bias = padded(rows * width);
    return (cuda_layout){.rows = rows,
                         .columns = columns,
                         .width = width,
                         .dt = bias,
                         .target = bias + padded(rows),
                         .step_floats = bias + padded(rows) + cells,
                         .weights = cells,
                         .chunk_floats = cells + padded(rows)};
}

/* Without a target the weights are 0, and tying changes nothing. */
static void fill_chunk(cuda_loop *loop, const flow_request *request)
{
    const cuda_layout *layout = &loop->layout;
    memset(loop->chunk_in, 0, layout->chunk_floats * sizeof(float));
    memcpy(loop->chunk_in, request->noise, layout->rows * layout->columns * sizeof(float));
    if (request->weights != NULL)
        memcpy(loop->chunk_in + layout->weights, request->weights, layout->rows * sizeof(float));
}

/* What step k reads; `rest`: it takes the whole rest of the way. */
static void fill_step(cuda_loop *loop, const flow_request *request, float *row, int k, bool rest)
{
    const cuda_layout *layout = &loop->layout;
    const flow_moment *moment = &request->moments[k];
    for (size_t i = 0; i < layout->rows; i++) {
        memcpy(row + i * layout->width, request->bias_rows + (size_t)k * layout->width, layout->width * sizeof(float));
        row[layout->dt + i] = (float)(rest ? moment->rest : moment->dt);
    }
    flow_path(request, row + layout->target, layout->rows * layout->columns, moment->t);
}

/* Launches the steps from k on, one graph; `turn` says whose rows are free. Returns how many steps it takes, 0 on
 * failure. */
static int launch_steps(cuda_loop *loop, int side, const flow_request *request, int k, int turn, bool rest)
{
    int count = rest || request->steps - k < CUDA_GROUP ? 1 : CUDA_GROUP;
    cuda_exec exec = count == 1 ? loop->single[side] : loop->group[side][turn];
    float *rows = loop->step_in + (size_t)(count == 1 ? 2 : turn) * CUDA_GROUP * loop->layout.step_floats;
    for (int i = 0; i < count; i++)
        fill_step(loop, request, rows + (size_t)i * loop->layout.step_floats, k + i, rest);
    return launch(loop, exec, loop->high) && record(loop, loop->stepped[turn], loop->high) ? count : 0;
}

static void share_time(flow_result *result, int from, int count, int64_t took_ns)
{
    for (int i = 0; i < count; i++)
        result->step_ns[from + i] = took_ns / count;
}

static flow_outcome run_steps(cuda_loop *loop, int side, const flow_request *request, flow_result *result)
{
    int k = 0, running = 0; /* steps launched; of these, in the newest launch */
    int64_t before = clock_now_ns();
    fill_chunk(loop, request);
    if (!launch(loop, loop->begin, loop->high))
        return FLOW_FAILED;
    bool last = false;
    for (int turn = 0; k < request->steps && !last; turn = 1 - turn) {
        flow_signal signal = k == 0 ? FLOW_CONTINUE : flow_asked(request);
        if (signal == FLOW_ABANDON) {
            result->steps = k;
            return finished(loop) ? FLOW_ABANDONED : FLOW_FAILED;
        }
        last = signal == FLOW_FINISH;
        int count = launch_steps(loop, side, request, k, turn, last);
        if (count == 0 || (k > 0 && !reached(loop, loop->stepped[1 - turn])))
            return FLOW_FAILED;
        int64_t now = clock_now_ns();
        if (k > 0) {
            share_time(result, k - running, running, now - before);
            before = now;
        }
        running = count;
        k += count;
    }
    if (!launch(loop, loop->end, loop->high) || !finished(loop))
        return FLOW_FAILED;
    share_time(result, k - running, running, clock_now_ns() - before);
    result->steps = k;
    flow_tie(request, loop->x_out, loop->layout.rows, loop->layout.columns, 0.0);
    return FLOW_DONE;
}

void cuda_loop_denoise(cuda_loop *loop, int side, const flow_request *request, flow_result *result)
{
    memset(result, 0, sizeof *result);
    result->outcome = FLOW_FAILED;
    if (!cuda_enter(loop->driver) || !order(loop, loop->high, loop->filled[side]))
        return;
    result->outcome = run_steps(loop, side, request, result);
    if (result->outcome != FLOW_FAILED && !record(loop, loop->idle[side], loop->high))
        result->outcome = FLOW_FAILED;
}
