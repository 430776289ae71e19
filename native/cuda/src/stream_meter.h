// SPDX-License-Identifier: Apache-2.0
//
// The segments of one stream. Whoever touches what is not atomic holds the lock, and whoever touches
// events a Touch.
#ifndef XPU_CUDA_STREAM_METER_H
#define XPU_CUDA_STREAM_METER_H

#include <atomic>
#include <cstdint>

#include "costs.h"
#include "lock.h"
#include "meter.h"

namespace xpu {

// A stretch of work on one stream between two events.
struct Segment {
    static constexpr unsigned kLessons = 4;
    struct Lesson {
        Cost* cost;
        Nanos predicted; // of one launch, when it was admitted
    };

    std::uint32_t start_event = 0, end_event = 0; // sequence numbers of the stream's events
    Nanos opened = 0;      // host time before the start event was recorded,
    Nanos recorded = 0;    // and after it, on a stream that had nothing to do
    Nanos lead = 0;        // from then to the first launch: in the events, but no work
    Nanos start = 0;       // when the work ran, on the host's clock; known once it finished
    Nanos end = 0;
    Nanos predicted = 0;   // sum over the launches
    Nanos stall = 0;       // between the start event and the first launch, on a stream without work
    bool known = true;     // all of its costs were
    unsigned lessons = 0;
    Lesson lesson[kLessons] = {};

    // Work that was expected to take `predicted` in all, this segment's among it, took `actual`: all
    // kinds of it share the surprise in proportion. In `company`, of streams that overlap, it is
    // uncertain whose the time was, and little is learnt at once.
    void teach(Nanos actual, Nanos predicted, bool company) const noexcept;
};

class StreamMeter;

// An event whose place on the host's clock is known: the end of the segment read last, whatever its
// stream. Between two events of a context the driver gives the distance on the GPU's clock, so
// streams are laid beside each other as they ran, not as they were launched.
struct Anchor {
    StreamMeter* stream = nullptr;
    std::uint32_t event = 0; // its sequence number on that stream
    Nanos at = 0;
};

class StreamMeter {
  public:
    static constexpr unsigned kPending = 4;

    SpinLock lock;

    bool is(StreamKey key) const noexcept { return key_.load(std::memory_order_acquire) == key; }
    bool per_thread() const noexcept {
        return handle_.load(std::memory_order_relaxed) == XPU_STREAM_PER_THREAD;
    }
    bool has_pending() const noexcept { return pending_count_.load(std::memory_order_relaxed) > 0; }

    void adopt(CUstream handle) noexcept;
    bool adopt_if_idle(CUstream handle) noexcept; // takes and releases the lock itself
    void release() noexcept;                      // the stream ends; what is pending is still settled
    void forget() noexcept;                       // the events died with their context

    // Decides whether this launch opens, continues or leaves a segment, and records what must come
    // before it. True: call close() after it.
    bool launch_begins(Launch& launch, Cost& cost) noexcept;
    void first_launched(Nanos now) noexcept;
    void launch_failed(const Launch& launch) noexcept;
    // A launch without the lock: the measurement that is open or comes next holds its time.
    void passes(Nanos predicted) noexcept {
        passed_.fetch_add(predicted, std::memory_order_relaxed);
    }
    void close(Nanos now) noexcept;
    void close_if_due(Nanos now) noexcept;

    bool full() const noexcept { return pending_count_.load() == kPending; }
    void wait_for_oldest() noexcept;
    bool oldest_unsettled() const noexcept;
    bool take_finished(Segment& out, Anchor& anchor) noexcept;
    Nanos take_unmeasured() noexcept; // predicted time of launches no segment measured
    Nanos unsettled() noexcept;       // predicted time of all that is not settled yet

  private:
    static constexpr unsigned kEvents = 16;
    static constexpr unsigned kAloneEvery = 8;
    static constexpr Nanos kSampleInterval = 1'000'000;
    static constexpr unsigned kFaults = 16;
    static constexpr Nanos kStall = 20'000;
    static constexpr Nanos kLongestLead = 5'000;
    static constexpr unsigned kDoubts = 3;

    bool record(std::uint32_t& sequence) noexcept;
    CUevent event(std::uint32_t sequence) const noexcept { return events_[sequence % kEvents]; }
    bool room_for_events() const noexcept;
    bool still_holds(std::uint32_t sequence) const noexcept;
    bool place(const Anchor& anchor, CUevent end, Nanos& at) noexcept;
    bool open(Nanos now, bool reuse_mark) noexcept;
    bool due(const Launch& launch, bool known) const noexcept;
    void open_for(Launch& launch, bool known) noexcept;
    void restart_clock() noexcept;
    bool doubtful(Nanos now) const noexcept;
    void take_passed() noexcept;
    void abandon_segment() noexcept;
    void give_up(const char* what, CUresult result) noexcept;

    std::atomic<StreamKey> key_{0}; // 0: nobody's
    std::atomic<CUstream> handle_{nullptr};
    std::atomic<Nanos> passed_{0};
    std::atomic<unsigned> pending_count_{0};

    CUevent events_[kEvents] = {};
    std::uint32_t next_event_ = 0;
    std::uint32_t mark_ = 0;    // the last event recorded
    bool mark_is_last_ = false; // nothing was launched after it
    bool open_ = false;
    Segment current_;
    Segment pending_[kPending];
    unsigned oldest_ = 0;

    Nanos busy_until_ = 0;   // estimate, host clock
    Nanos last_end_ = 0;     // end of the last measured segment, host clock
    Nanos last_sample_ = 0;
    Nanos unmeasured_ = 0;
    std::uint32_t segments_ = 0;
    bool alone_ = true; // the next segment ends after its first launch
    unsigned faults_ = 0;
    unsigned doubts_ = 0; // measurements in a row that were left out for a stall of the host
};

} // namespace xpu
#endif
