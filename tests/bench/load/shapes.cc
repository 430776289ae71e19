// SPDX-License-Identifier: GPL-3.0-or-later
#include "shapes.h"

#include <cstring>
#include <ctime>
#include <deque>
#include <random>
#include <string>

namespace bench {

void Progress::complete(Nanos kernel_ns, Nanos since) {
    const Nanos now = monotonic_now();
    std::lock_guard hold(mutex_);
    ++count_.items;
    count_.kernel_ns += kernel_ns;
    count_.last_item = now;
    items_.push_back({since, now});
}

Progress::Count Progress::count() const {
    std::lock_guard hold(mutex_);
    return count_;
}

std::vector<Progress::Item> Progress::items() const {
    std::lock_guard hold(mutex_);
    return items_;
}

namespace {

constexpr Nanos kUs = 1'000;
constexpr Nanos kMs = 1'000'000;
constexpr unsigned kFullGrid = 1024;

struct Run {
    CUfunction kernel;
    unsigned seed;
    Progress& progress;
    const std::atomic<bool>& stop;
};

void sleep_until(Nanos when) {
    const timespec until = {when / 1'000'000'000, when % 1'000'000'000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
}

// `count` kernels of `length`, then a wait.
void launches_and_wait(Run& run, Nanos length, int count, unsigned grid) {
    while (!run.stop) {
        const Nanos since = monotonic_now();
        for (int i = 0; i < count; ++i) launch(run.kernel, length, nullptr, grid);
        must(api.cuCtxSynchronize(), "cuCtxSynchronize");
        run.progress.complete(length * count, since);
    }
}

void tiny(Run& run) { launches_and_wait(run, 20 * kUs, 50, kFullGrid); }
void mid(Run& run) { launches_and_wait(run, 500 * kUs, 20, kFullGrid); }
void small_grid(Run& run) { launches_and_wait(run, 2 * kMs, 1, 1); }
void long_kernel(Run& run) { launches_and_wait(run, 300 * kMs, 1, kFullGrid); }

// A queue that never runs dry: the application is always 200 kernels of 10 ms ahead, as far as it is let.
void deep(Run& run) {
    constexpr std::size_t kDepth = 200;
    constexpr Nanos kLength = 10 * kMs;
    struct Sent {
        CUevent done;
        Nanos since;
    };
    std::deque<Sent> queue;
    std::vector<CUevent> spare(kDepth);
    for (CUevent& event : spare) must(api.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    while (!run.stop) {
        if (spare.empty()) must(api.cuEventSynchronize(queue.front().done), "cuEventSynchronize");
        while (!queue.empty() && api.cuEventQuery(queue.front().done) == CUDA_SUCCESS) {
            run.progress.complete(kLength, queue.front().since);
            spare.push_back(queue.front().done);
            queue.pop_front();
        }
        const Sent next = {spare.back(), monotonic_now()};
        spare.pop_back();
        launch(run.kernel, kLength, nullptr, kFullGrid);
        must(api.cuEventRecord(next.done, nullptr), "cuEventRecord");
        queue.push_back(next);
    }
}

// 30 kernels of 0.5 ms in one graph, then a wait.
void graph(Run& run) {
    constexpr int kNodes = 30;
    constexpr Nanos kLength = 500 * kUs;
    if (api.cuGraphLaunch == nullptr || api.cuStreamBeginCapture_v2 == nullptr ||
        api.cuStreamEndCapture == nullptr || api.cuGraphInstantiateWithFlags == nullptr)
        fail("shape graph", "the driver has no graphs");
    CUstream stream = nullptr;
    CUgraph captured = nullptr;
    CUgraphExec executable = nullptr;
    must(api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    must(api.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "begin capture");
    for (int i = 0; i < kNodes; ++i) launch(run.kernel, kLength, stream, kFullGrid);
    must(api.cuStreamEndCapture(stream, &captured), "end capture");
    must(api.cuGraphInstantiateWithFlags(&executable, captured, 0), "instantiate");
    while (!run.stop) {
        const Nanos since = monotonic_now();
        must(api.cuGraphLaunch(executable, stream), "cuGraphLaunch");
        must(api.cuStreamSynchronize(stream), "cuStreamSynchronize");
        run.progress.complete(kLength * kNodes, since);
    }
}

// A training step: kernels of very different lengths, then 5 ms on the host.
void mixed(Run& run) {
    constexpr Nanos kLengths[] = {50 * kUs, 200 * kUs, 1 * kMs, 3 * kMs, 5 * kMs};
    constexpr int kRounds = 10;
    while (!run.stop) {
        const Nanos since = monotonic_now();
        Nanos sum = 0;
        for (int round = 0; round < kRounds; ++round) {
            for (const Nanos length : kLengths) {
                launch(run.kernel, length, nullptr, kFullGrid);
                sum += length;
            }
        }
        must(api.cuCtxSynchronize(), "cuCtxSynchronize");
        run.progress.complete(sum, since);
        sleep_until(monotonic_now() + 5 * kMs);
    }
}

// An inference service: requests of 50 ms of card time arrive at random, four a second, and wait for
// each other. Latency counts from the arrival, so waiting behind a delayed request is not hidden.
void bursty(Run& run) {
    constexpr double kRequestsPerSecond = 4;
    constexpr int kKernels = 10;
    constexpr Nanos kLength = 5 * kMs;
    std::minstd_rand chance(run.seed);
    std::exponential_distribution<double> gap(kRequestsPerSecond);
    Nanos arrival = monotonic_now();
    while (!run.stop) {
        arrival += static_cast<Nanos>(1e9 * gap(chance));
        if (arrival > monotonic_now()) sleep_until(arrival);
        for (int i = 0; i < kKernels; ++i) launch(run.kernel, kLength, nullptr, kFullGrid);
        must(api.cuCtxSynchronize(), "cuCtxSynchronize");
        run.progress.complete(kLength * kKernels, arrival);
    }
}

// Four streams with five kernels of 1 ms each, then a wait for all.
void multi_stream(Run& run) {
    constexpr int kKernels = 5;
    constexpr Nanos kLength = 1 * kMs;
    CUstream streams[4] = {};
    for (CUstream& stream : streams)
        must(api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    while (!run.stop) {
        const Nanos since = monotonic_now();
        for (int i = 0; i < kKernels; ++i)
            for (CUstream stream : streams) launch(run.kernel, kLength, stream, kFullGrid);
        for (CUstream stream : streams) must(api.cuStreamSynchronize(stream), "cuStreamSynchronize");
        run.progress.complete(kLength * kKernels * 4, since);
    }
}

struct Shape {
    const char* name;
    void (*run)(Run&);
};
constexpr Shape kShapes[] = {
    {"tiny", tiny},   {"mid", mid},     {"small-grid", small_grid}, {"long", long_kernel},
    {"deep", deep},   {"graph", graph}, {"mixed", mixed},           {"bursty", bursty},
    {"multi-stream", multi_stream},
};

} // namespace

void run_shape(const char* name, CUfunction kernel, unsigned seed, Progress& progress,
               const std::atomic<bool>& stop) {
    std::string known;
    for (const Shape& shape : kShapes) {
        if (std::strcmp(shape.name, name) == 0) {
            Run run = {kernel, seed, progress, stop};
            shape.run(run);
            return;
        }
        known += std::string(" ") + shape.name;
    }
    fail(name, ("no such shape; there are" + known).c_str());
}

} // namespace bench
