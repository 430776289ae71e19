// SPDX-License-Identifier: Apache-2.0
#include "meter.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <new>
#include <sys/mman.h>

#include "guard.h"
#include "stream_meter.h"
#include "xpu/log.h"
#include "xpu/uncancelled.h"

namespace xpu {

// All streams of one context on one card. Lives in its own mapping, so that neither start-up nor a
// launch ever calls malloc, and is kept for the next context when its own ended.
class ContextMeter {
  public:
    std::atomic<CUcontext> context{nullptr};
    std::atomic<int> card{kNoCard};

    StreamMeter* stream(CUstream handle) noexcept;
    void close_segments(CUstream handle, bool all, Nanos now) noexcept;
    void close_before_nap(CUstream handle, Nanos now) noexcept;
    void poll(Nanos now) noexcept;
    bool due(Nanos now) const noexcept {
        return now - polled_.load(std::memory_order_relaxed) >= kPollInterval;
    }
    void reset(CUcontext owner, int its_card) noexcept;

  private:
    static constexpr unsigned kStreams = 128;
    static constexpr Nanos kPollInterval = 200'000;

    std::atomic<Nanos> polled_{0};
    SpinLock polling_;
    Anchor anchor_; // under polling_
    std::atomic<unsigned> streams_used_{0};
    StreamMeter streams_[kStreams];
};

namespace {

constexpr unsigned kContexts = 32;
constexpr unsigned kSettledAtOnce = 32;

CostTable costs;
std::atomic<ContextMeter*> meters[kContexts];
std::atomic<unsigned> meters_used{0};
SpinLock creating;
std::atomic<int> captures{0};

// What this process has counted of a card's time, over all contexts and streams on it.
struct CountedTime {
    SpinLock lock;
    Nanos until = 0;
};
CountedTime counted[XPU_MAX_CARDS];

ContextMeter* find_meter(CUcontext context) noexcept {
    for (unsigned index = 0, used = meters_used.load(std::memory_order_acquire); index < used;
         ++index) {
        ContextMeter* meter = meters[index].load(std::memory_order_relaxed);
        if (meter->context.load(std::memory_order_acquire) == context) return meter;
    }
    return nullptr;
}

ContextMeter* free_meter() noexcept {
    if (ContextMeter* kept = find_meter(nullptr)) return kept;
    const unsigned used = meters_used.load();
    if (used == kContexts) return nullptr;
    void* memory = mmap(nullptr, sizeof(ContextMeter), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* meter = new (memory) ContextMeter;
    meters[used].store(meter);
    meters_used.store(used + 1, std::memory_order_release);
    return meter;
}

ContextMeter* make_meter(CUcontext context) noexcept {
    const int card = guard.current_card();
    Hold hold(creating);
    if (ContextMeter* other_thread_was_first = find_meter(context)) return other_thread_was_first;
    ContextMeter* meter = free_meter();
    if (meter == nullptr) {
        XPU_LOG_ONCE("more than %u contexts: the work of further ones is not limited", kContexts);
        return nullptr;
    }
    meter->reset(context, card);
    return meter;
}

ContextMeter* current_meter() noexcept {
    CUcontext context = nullptr;
    if (real.cuCtxGetCurrent(&context) != CUDA_SUCCESS || context == nullptr) return nullptr;
    ContextMeter* meter = find_meter(context);
    return meter != nullptr ? meter : make_meter(context);
}

bool being_captured(CUstream stream) noexcept {
    if (captures.load(std::memory_order_relaxed) <= 0) return false;
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    // An error means the legacy stream while others capture: not ours to touch either.
    return real.cuStreamIsCapturing == nullptr ||
           real.cuStreamIsCapturing(stream, &status) != CUDA_SUCCESS ||
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

bool may_measure() noexcept { return captures.load(std::memory_order_relaxed) <= 0; }

void sleep_until(Nanos when) noexcept {
    const timespec at = {static_cast<time_t>(when / 1'000'000'000), when % 1'000'000'000};
    const int saved = errno;
    // A signal ends the nap early; the caller asks again anyway. Natively a launch is no cancellation point.
    const Uncancelled here;
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
    errno = saved;
}

// Waits until the work may start, then charges it. The grant is read anew after each nap, and
// what finished meanwhile is settled, which may shorten or lengthen the wait.
void admit_or_wait(Launch& launch, int card) noexcept {
    xpu_card_ledger& ledger = guard.ledger().card(static_cast<unsigned>(card));
    auto& tat = shared(ledger.tat_ns);
    for (;;) {
        const Grant grant =
            admit(tat, launch.now, launch.predicted, guard.grants(card).rate());
        if (grant.wait == 0) {
            launch.charged_tat = grant.charged_tat;
            break;
        }
        if (may_measure()) launch.context->close_before_nap(launch.handle, launch.now);
        sleep_until(launch.now + sleep_slice(grant.wait));
        const Nanos woken = monotonic_now();
        shared(ledger.throttled_ns)
            .fetch_add(static_cast<std::uint64_t>(woken - launch.now), std::memory_order_relaxed);
        launch.now = woken;
        guard.refresh();
        if (may_measure()) launch.context->poll(woken);
    }
    shared(ledger.launches).fetch_add(1, std::memory_order_relaxed);
}

// Charges a finished segment its measured time in place of the predicted one.
void settle_segment(const Segment& segment, int card) noexcept {
    Nanos actual = 0;
    {
        CountedTime& mine = counted[card];
        Hold hold(mine.lock);
        actual = claim_busy(mine.until, segment.start, segment.end);
    }
    settle(shared(guard.ledger().card(static_cast<unsigned>(card)).tat_ns), segment.charged_tat,
           actual, guard.grants(card).rate());
    guard.ledger().add_charged(static_cast<unsigned>(card), actual);
    segment.teach(actual);
}

// The measurement of these launches was given up; they stay charged as predicted.
void settle_as_predicted(int card, Nanos predicted) noexcept {
    guard.ledger().add_charged(static_cast<unsigned>(card), predicted);
}

} // namespace

void ContextMeter::reset(CUcontext owner, int its_card) noexcept {
    for (StreamMeter& stream : streams_) stream.forget();
    streams_used_.store(0);
    polled_.store(0);
    anchor_ = {};
    polling_.unlock();
    card.store(its_card);
    context.store(owner, std::memory_order_release);
}

// Handles are recycled by the driver and so are our entries: a stream with nothing open or pending
// gives its place to another when all are taken.
StreamMeter* ContextMeter::stream(CUstream handle) noexcept {
    const unsigned used = std::min(streams_used_.load(std::memory_order_acquire), kStreams);
    for (unsigned index = 0; index < used; ++index) {
        if (streams_[index].is(handle)) return &streams_[index];
    }
    if (used < kStreams) {
        const unsigned mine = streams_used_.fetch_add(1, std::memory_order_acq_rel);
        if (mine < kStreams) {
            streams_[mine].adopt(handle);
            return &streams_[mine];
        }
    }
    for (StreamMeter& stream : streams_) {
        if (stream.adopt_if_idle(handle)) return &stream;
    }
    return nullptr;
}

void ContextMeter::close_segments(CUstream handle, bool all, Nanos now) noexcept {
    const unsigned used = std::min(streams_used_.load(std::memory_order_acquire), kStreams);
    for (unsigned index = 0; index < used; ++index) {
        StreamMeter& stream = streams_[index];
        if ((!all && !stream.is(handle)) || !stream.lock.try_lock()) continue;
        stream.close(now);
        stream.lock.unlock();
    }
}

// A nap lets the stream run dry, and a segment left open over it could not be measured.
void ContextMeter::close_before_nap(CUstream handle, Nanos now) noexcept {
    StreamMeter* own = stream(handle);
    if (own == nullptr || !own->lock.try_lock()) return;
    own->close_if_due(now);
    own->lock.unlock();
}

// All finished segments of all streams, settled in the order in which they ended: claim_busy()
// counts overlapping work of two streams once only when it sees it in that order.
void ContextMeter::poll(Nanos now) noexcept {
    if (!polling_.try_lock()) return;
    polled_.store(now, std::memory_order_relaxed);
    Segment finished[kSettledAtOnce];
    unsigned count = 0;
    const int its_card = card.load(std::memory_order_relaxed);
    const unsigned used = std::min(streams_used_.load(std::memory_order_acquire), kStreams);
    for (unsigned index = 0; index < used; ++index) {
        StreamMeter& stream = streams_[index];
        if (!stream.lock.try_lock()) continue;
        while (count < kSettledAtOnce && stream.take_finished(finished[count], anchor_, now))
            ++count;
        settle_as_predicted(its_card, stream.take_unmeasured());
        stream.lock.unlock();
    }
    std::sort(finished, finished + count,
              [](const Segment& a, const Segment& b) { return a.end < b.end; });
    for (unsigned index = 0; index < count; ++index) settle_segment(finished[index], its_card);
    polling_.unlock();
}

bool begin_launch(Launch& launch, const void* work, std::uint64_t blocks,
                  CUstream stream) noexcept {
    guard.refresh();
    ContextMeter* meter = current_meter();
    if (meter == nullptr) return false;
    const int card = meter->card.load(std::memory_order_relaxed);
    if (card == kNoCard || !guard.grants(card).rate().limited()) return false;
    if (being_captured(stream)) return false;

    guard.join();
    Cost& cost = costs.of(work, blocks);
    launch.context = meter;
    launch.handle = stream;
    launch.now = monotonic_now();
    launch.predicted = cost.predicted();
    if (may_measure() && meter->due(launch.now)) meter->poll(launch.now);
    admit_or_wait(launch, card);

    StreamMeter* own = may_measure() ? meter->stream(stream) : nullptr;
    if (own == nullptr || !own->lock.try_lock()) {
        settle_as_predicted(card, launch.predicted);
        return true;
    }
    while (own->full() && may_measure()) { // the bound on work in flight
        own->wait_for_oldest();
        own->lock.unlock();
        launch.now = monotonic_now();
        meter->poll(launch.now);
        // Whoever has it may be a thread that ended inside the driver's launch.
        if (!own->lock.lock_soon()) {
            settle_as_predicted(card, launch.predicted);
            return true;
        }
        if (own->full() && own->oldest_unsettled()) break;
    }
    launch.stream = own;
    launch.close = own->launch_begins(launch, cost);
    return true;
}

void end_launch(Launch& launch, CUresult result) noexcept {
    StreamMeter* stream = launch.stream;
    if (result != CUDA_SUCCESS) {
        const int card = launch.context->card.load(std::memory_order_relaxed);
        settle(shared(guard.ledger().card(static_cast<unsigned>(card)).tat_ns),
               launch.charged_tat, 0, guard.grants(card).rate());
        if (stream != nullptr) stream->launch_failed(launch);
    }
    if (stream == nullptr) return;
    if (result == CUDA_SUCCESS && launch.close) stream->close(launch.now);
    stream->lock.unlock();
}

void before_sync(CUstream stream, bool all_streams) noexcept {
    if (!may_measure()) return;
    CUcontext context = nullptr;
    if (real.cuCtxGetCurrent(&context) != CUDA_SUCCESS) return;
    ContextMeter* meter = context == nullptr ? nullptr : find_meter(context);
    if (meter != nullptr) meter->close_segments(stream, all_streams, monotonic_now());
}

void after_sync() noexcept {
    if (!may_measure()) return;
    CUcontext context = nullptr;
    if (real.cuCtxGetCurrent(&context) != CUDA_SUCCESS) return;
    ContextMeter* meter = context == nullptr ? nullptr : find_meter(context);
    if (meter != nullptr && meter->card.load(std::memory_order_relaxed) != kNoCard)
        meter->poll(monotonic_now());
}

void capture_began() noexcept { captures.fetch_add(1); }
void capture_ended() noexcept { captures.fetch_sub(1); }

void forget_meter(CUcontext context) noexcept {
    Hold hold(creating);
    if (ContextMeter* meter = context == nullptr ? nullptr : find_meter(context))
        meter->reset(nullptr, kNoCard);
}

void forget_all_meters() noexcept {
    creating.unlock();
    captures.store(0);
    for (CountedTime& card : counted) card.lock.unlock();
    for (unsigned index = 0; index < meters_used.load(); ++index)
        meters[index].load()->reset(nullptr, kNoCard);
}

} // namespace xpu
