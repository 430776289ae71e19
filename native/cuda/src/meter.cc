// SPDX-License-Identifier: Apache-2.0
#include "meter.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <new>
#include <sys/mman.h>

#include "call.h"
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
    void release(StreamKey key, Nanos now) noexcept;
    void poll(Nanos now) noexcept;
    Nanos unsettled() noexcept;
    bool due(Nanos now) const noexcept {
        return passed(polled_.load(std::memory_order_relaxed), now, kPollInterval);
    }
    void reset(CUcontext owner, int its_card) noexcept;

  private:
    void settle_finished(int its_card) noexcept;
    unsigned used() const noexcept {
        return std::min(streams_used_.load(std::memory_order_acquire), kStreams);
    }

    static constexpr unsigned kStreams = 128;
    static constexpr Nanos kPollInterval = 200'000;

    std::atomic<Nanos> polled_{0};
    SpinLock polling_; // for the next three
    Anchor anchor_;
    BusyTime counted_; // streams of one context overlap; contexts take turns, as processes do
    Segment finished_[kStreams * StreamMeter::kPending];
    std::atomic<unsigned> streams_used_{0};
    StreamMeter streams_[kStreams];
};

namespace {

// What follows each other may seem to overlap by this: the driver gives distances as floats.
constexpr Nanos kBoundary = 1'000;
// More than fit on all cards of a machine: each costs the card hundreds of megabytes.
constexpr unsigned kContexts = 256;

CostTable costs;
std::atomic<ContextMeter*> meters[kContexts];
std::atomic<unsigned> meters_used{0};
SpinLock creating;

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
    if (!captures.any()) return false;
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    // An error means the legacy stream while others capture: not ours to touch either.
    return real.cuStreamIsCapturing == nullptr ||
           real.cuStreamIsCapturing(stream, &status) != CUDA_SUCCESS ||
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void sleep_until(Nanos when) noexcept {
    const timespec at = {static_cast<time_t>(when / 1'000'000'000), when % 1'000'000'000};
    const int saved = errno;
    // A signal ends the nap early; the caller asks again anyway. Natively a launch is no cancellation point.
    const Uncancelled here;
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
    errno = saved;
}

Account account(int card) noexcept {
    xpu_card_ledger& ledger = guard.ledger().card(static_cast<unsigned>(card));
    return {shared(ledger.tat_ns), shared(ledger.stands_at_q32), shared(ledger.busy_until_ns)};
}

// Waits until the work may start, then charges it. The grant is read anew after each nap, and
// what finished meanwhile is settled, which may shorten or lengthen the wait and tell the cost.
void admit_or_wait(Launch& launch, const Cost& cost, int card) noexcept {
    xpu_card_ledger& ledger = guard.ledger().card(static_cast<unsigned>(card));
    while (const Nanos wait =
               start(account(card), guard.grants(card).terms(), launch.now, launch.predicted)) {
        launch.context->close_before_nap(launch.handle, launch.now);
        sleep_until(launch.now + sleep_slice(wait));
        const Nanos woken = monotonic_now();
        const Nanos waited = std::max<Nanos>(0, woken - launch.now);
        shared(ledger.throttled_ns)
            .fetch_add(static_cast<std::uint64_t>(waited), std::memory_order_relaxed);
        launch.now = woken;
        guard.refresh();
        launch.context->poll(woken);
        launch.predicted = cost.predicted();
    }
    shared(ledger.launches).fetch_add(1, std::memory_order_relaxed);
}

// Charges a finished segment its measured time in place of the predicted one.
void settle_segment(const Segment& segment, Nanos actual, int card) noexcept {
    settle(account(card), guard.grants(card).terms(), segment.predicted, actual);
    guard.ledger().add_charged(static_cast<unsigned>(card), actual);
}

// The measurement of these launches was given up; they stay charged as predicted.
void settle_as_predicted(int card, Nanos predicted) noexcept {
    guard.ledger().add_charged(static_cast<unsigned>(card), predicted);
}

} // namespace

// What no segment will tell any more was charged as predicted, and is counted so.
void ContextMeter::reset(CUcontext owner, int its_card) noexcept {
    for (StreamMeter& stream : streams_) stream.forget();
    streams_used_.store(0);
    polled_.store(0);
    anchor_ = {};
    counted_ = {};
    polling_.unlock();
    card.store(its_card);
    context.store(owner, std::memory_order_release);
}

// Handles are recycled by the driver and so are our entries: a stream with nothing open or pending
// gives its place to another when all are taken.
StreamMeter* ContextMeter::stream(CUstream handle) noexcept {
    const StreamKey key = key_of(handle);
    for (unsigned index = 0, count = used(); index < count; ++index) {
        if (streams_[index].is(key)) return &streams_[index];
    }
    if (used() < kStreams) {
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

// An event can be recorded in any stream, but in another thread's own default stream only by that thread.
void ContextMeter::close_segments(CUstream handle, bool all, Nanos now) noexcept {
    const Touch touch;
    if (!touch) return;
    const StreamKey key = key_of(handle), own = key_of(XPU_STREAM_PER_THREAD);
    for (unsigned index = 0, count = used(); index < count; ++index) {
        StreamMeter& stream = streams_[index];
        const bool meant = all ? !stream.per_thread() || stream.is(own) : stream.is(key);
        if (!meant || !stream.lock.try_lock()) continue;
        stream.close(now);
        stream.lock.unlock();
    }
}

// A nap lets the stream run dry, and a segment left open over it could not be measured.
void ContextMeter::close_before_nap(CUstream handle, Nanos now) noexcept {
    const Touch touch;
    StreamMeter* own = touch ? stream(handle) : nullptr;
    if (own == nullptr || !own->lock.try_lock()) return;
    own->close_if_due(now);
    own->lock.unlock();
}

// Its last segment ends here; the driver may give its handle to another stream at once. Who launches
// in a stream that he destroys elsewhere holds the lock, and gets what he asked for.
void ContextMeter::release(StreamKey key, Nanos now) noexcept {
    const Touch touch;
    for (unsigned index = 0, count = used(); index < count; ++index) {
        StreamMeter& stream = streams_[index];
        if (!stream.is(key) || !stream.lock.try_lock()) continue;
        if (touch) stream.close(now);
        stream.release();
        stream.lock.unlock();
    }
}

// All finished segments of all streams. Those that overlap are charged the time that passed, once; which
// of them took it cannot be told, so they learn from their sum together.
void ContextMeter::settle_finished(int its_card) noexcept {
    const Touch touch;
    if (!touch) return;
    Segment* end = finished_;
    for (unsigned index = 0, streams = used(); index < streams; ++index) {
        StreamMeter& stream = streams_[index];
        if (!stream.lock.try_lock()) continue;
        for (unsigned most = StreamMeter::kPending;
             most > 0 && stream.take_finished(*end, anchor_); --most)
            ++end;
        settle_as_predicted(its_card, stream.take_unmeasured());
        stream.lock.unlock();
    }
    std::sort(finished_, end, [](const Segment& a, const Segment& b) { return a.start < b.start; });
    for (Segment* first = finished_; first != end;) {
        Segment* last = first;
        Nanos until = first->end, length = 0, predicted = 0, actual = 0;
        for (; last != end && (last == first || last->start + kBoundary < until); ++last) {
            const Nanos fresh = counted_.claim(last->start, last->end);
            settle_segment(*last, fresh, its_card);
            until = std::max(until, last->end);
            length += last->end - last->start;
            predicted += last->predicted;
            actual += fresh;
        }
        const bool company = length - actual > length / 64;
        for (; first != last; ++first) first->teach(actual, predicted, company);
    }
}

void ContextMeter::poll(Nanos now) noexcept {
    if (!polling_.try_lock()) return;
    const int its_card = card.load(std::memory_order_relaxed);
    if (clock_restarted(polled_.exchange(now, std::memory_order_relaxed), now)) {
        anchor_ = {};
        counted_ = {};
        restart(account(its_card), guard.grants(its_card).terms(), now);
    }
    settle_finished(its_card);
    polling_.unlock();
}

Nanos ContextMeter::unsettled() noexcept {
    Nanos sum = 0;
    for (unsigned index = 0, count = used(); index < count; ++index)
        sum += streams_[index].unsettled();
    return sum;
}

namespace {

// What ran in other contexts of this process is settled too, one context at a time: who only ever
// works in a new one would otherwise be charged what was guessed.
void poll_in_turn(ContextMeter& current, Nanos now) noexcept {
    current.poll(now);
    const unsigned used = meters_used.load(std::memory_order_acquire);
    if (used < 2) return;
    static std::atomic<unsigned> turn{0};
    ContextMeter* other =
        meters[turn.fetch_add(1, std::memory_order_relaxed) % used].load(std::memory_order_relaxed);
    if (other != &current && other->card.load(std::memory_order_relaxed) != kNoCard)
        other->poll(now);
}

// The bound on work in flight. False: the stream is another's by now, or its work does not end.
bool await_room(StreamMeter& own, Launch& launch) noexcept {
    while (own.full() && !captures.any()) {
        own.wait_for_oldest();
        own.lock.unlock();
        launch.now = monotonic_now();
        launch.context->poll(launch.now);
        if (!own.lock.try_lock()) return false;
        const Touch touch;
        if (touch && own.full() && own.oldest_unsettled()) break;
    }
    return true;
}

// Counts the launch to its stream: in a segment where that is possible, otherwise as predicted.
void count_launch(Launch& launch, Cost& cost) noexcept {
    StreamMeter* own = launch.context->stream(launch.handle);
    if (own == nullptr) {
        settle_as_predicted(launch.context->card.load(std::memory_order_relaxed), launch.predicted);
        return;
    }
    launch.stream = own;
    launch.holds = !captures.any() && own->lock.try_lock() && await_room(*own, launch);
    if (!launch.holds) {
        own->passes(launch.predicted);
        return;
    }
    launch.close = own->launch_begins(launch, cost);
}

} // namespace

bool begin_launch(Launch& launch, const void* work, std::uint64_t blocks,
                  CUstream stream) noexcept {
    guard.refresh();
    ContextMeter* meter = current_meter();
    if (meter == nullptr) return false;
    const int card = meter->card.load(std::memory_order_relaxed);
    if (card == kNoCard || !guard.grants(card).limited()) return false;
    if (being_captured(stream)) return false;

    guard.join();
    Cost& cost = costs.of(work, blocks);
    launch.context = meter;
    launch.handle = stream;
    launch.now = monotonic_now();
    launch.predicted = cost.predicted();
    if (meter->due(launch.now)) poll_in_turn(*meter, launch.now);
    admit_or_wait(launch, cost, card);
    count_launch(launch, cost);
    return true;
}

void end_launch(Launch& launch, CUresult result) noexcept {
    StreamMeter* stream = launch.stream;
    if (result != CUDA_SUCCESS) {
        const int card = launch.context->card.load(std::memory_order_relaxed);
        settle(account(card), guard.grants(card).terms(), launch.predicted, 0);
        if (stream != nullptr) stream->launch_failed(launch);
    } else if (launch.holds && (launch.opens || launch.close)) {
        launch.now = monotonic_now();
        if (launch.opens) stream->first_launched(launch.now);
        if (launch.close) {
            const Touch touch;
            if (touch) stream->close(launch.now);
        }
    }
    if (launch.holds) stream->lock.unlock();
}

void before_sync(CUstream stream, bool all_streams) noexcept {
    CUcontext context = nullptr;
    if (real.cuCtxGetCurrent(&context) != CUDA_SUCCESS) return;
    ContextMeter* meter = context == nullptr ? nullptr : find_meter(context);
    if (meter != nullptr) meter->close_segments(stream, all_streams, monotonic_now());
}

void after_sync() noexcept {
    CUcontext context = nullptr;
    if (real.cuCtxGetCurrent(&context) != CUDA_SUCCESS) return;
    ContextMeter* meter = context == nullptr ? nullptr : find_meter(context);
    if (meter != nullptr && meter->card.load(std::memory_order_relaxed) != kNoCard)
        meter->poll(monotonic_now());
}

void forget_stream(CUstream stream) noexcept {
    const StreamKey key = key_of(stream);
    const Nanos now = monotonic_now();
    for (unsigned index = 0, count = meters_used.load(std::memory_order_acquire); index < count;
         ++index)
        meters[index].load(std::memory_order_relaxed)->release(key, now);
}

void settle_meter(CUcontext context) noexcept {
    ContextMeter* meter = context == nullptr ? nullptr : find_meter(context);
    if (meter == nullptr || meter->card.load(std::memory_order_relaxed) == kNoCard) return;
    // Its default stream can only be named where it is current.
    if (call(real.cuCtxPushCurrent_v2, context) != CUDA_SUCCESS) return;
    const Nanos now = monotonic_now();
    meter->close_segments(nullptr, true, now);
    meter->poll(now);
    (void)call(real.cuCtxPopCurrent_v2, &context);
}

void forget_meter(CUcontext context) noexcept {
    captures.context_ended(context);
    Hold hold(creating);
    ContextMeter* meter = context == nullptr ? nullptr : find_meter(context);
    if (meter == nullptr) return;
    const int card = meter->card.load(std::memory_order_relaxed);
    if (card != kNoCard) settle_as_predicted(card, meter->unsettled());
    meter->reset(nullptr, kNoCard);
}

void forget_all_meters() noexcept {
    creating.unlock();
    captures.forget_all();
    for (unsigned index = 0; index < meters_used.load(); ++index)
        meters[index].load()->reset(nullptr, kNoCard);
}

} // namespace xpu
