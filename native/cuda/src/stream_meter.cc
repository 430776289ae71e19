// SPDX-License-Identifier: Apache-2.0
#include "stream_meter.h"

#include <algorithm>
#include <iterator>

#include "guard.h"
#include "xpu/log.h"
#include "xpu/uncancelled.h"

namespace xpu {
namespace {

constexpr float kAnchorReach = 4000; // milliseconds; a float is exact to 0.25 µs up to there

} // namespace

void Segment::teach(Nanos actual, Nanos expected, bool company) const noexcept {
    if (expected <= 0) return;
    const double surprise = static_cast<double>(actual) / static_cast<double>(expected);
    for (unsigned index = 0; index < lessons; ++index) {
        const double measured = static_cast<double>(lesson[index].predicted) * surprise;
        lesson[index].cost->learn(static_cast<Nanos>(measured), company);
    }
}

void StreamMeter::adopt(CUstream handle) noexcept {
    handle_.store(handle, std::memory_order_relaxed);
    key_.store(key_of(handle), std::memory_order_release);
}

bool StreamMeter::adopt_if_idle(CUstream handle) noexcept {
    if (!lock.try_lock()) return false;
    const bool idle = !open_ && !has_pending();
    if (idle) {
        take_passed();
        adopt(handle);
        mark_is_last_ = false; // it lies on another stream
        busy_until_ = last_end_ = 0;
    }
    lock.unlock();
    return idle;
}

void StreamMeter::release() noexcept {
    if (open_) abandon_segment();
    mark_is_last_ = false;
    handle_.store(nullptr, std::memory_order_relaxed);
    key_.store(0, std::memory_order_release);
}

void StreamMeter::forget() noexcept {
    key_.store(0);
    handle_.store(nullptr);
    passed_.store(0);
    pending_count_.store(0);
    std::fill(std::begin(events_), std::end(events_), nullptr);
    next_event_ = mark_ = oldest_ = faults_ = doubts_ = segments_ = 0;
    mark_is_last_ = open_ = false;
    alone_ = true;
    busy_until_ = last_end_ = last_sample_ = unmeasured_ = 0;
    lock.unlock();
}

// Measuring is never worth an error of the application's: what fails is left out, and a stream on
// which it keeps failing is charged as predicted.
void StreamMeter::give_up(const char* what, CUresult result) noexcept {
    XPU_LOG_ONCE("%s failed with %d: a stretch of work is charged as predicted", what, result);
    ++faults_;
    for (unsigned count = pending_count_.load(); count > 0; --count) {
        unmeasured_ += pending_[oldest_].predicted;
        oldest_ = (oldest_ + 1) % kPending;
    }
    pending_count_.store(0);
    if (open_) abandon_segment();
    mark_is_last_ = false;
}

// The ring never overtakes the start of the oldest segment in use.
bool StreamMeter::room_for_events() const noexcept {
    std::uint32_t oldest = next_event_;
    if (has_pending()) oldest = pending_[oldest_].start_event;
    else if (open_) oldest = current_.start_event;
    return next_event_ - oldest < kEvents - 2;
}

bool StreamMeter::record(std::uint32_t& sequence) noexcept {
    CUevent& slot = events_[next_event_ % kEvents];
    CUresult result = CUDA_SUCCESS;
    if (slot == nullptr) result = real.cuEventCreate(&slot, CU_EVENT_BLOCKING_SYNC);
    if (result == CUDA_SUCCESS)
        result = real.cuEventRecord(slot, handle_.load(std::memory_order_relaxed));
    if (result != CUDA_SUCCESS) {
        give_up("recording a timing event", result);
        return false;
    }
    sequence = mark_ = next_event_++;
    mark_is_last_ = true;
    return true;
}

bool StreamMeter::open(Nanos now, bool reuse_mark) noexcept {
    current_ = {};
    current_.opened = reuse_mark ? 0 : now;
    current_.start_event = mark_;
    if (!reuse_mark && !record(current_.start_event)) return false;
    if (!reuse_mark && now >= busy_until_) current_.recorded = monotonic_now();
    open_ = true;
    last_sample_ = now;
    alone_ = alone_ || ++segments_ % kAloneEvery == 0;
    return true;
}

void StreamMeter::abandon_segment() noexcept {
    unmeasured_ += current_.predicted;
    open_ = false;
    alone_ = true;
}

// One sample per interval, at once for work that was never measured.
bool StreamMeter::due(const Launch& launch, bool known) const noexcept {
    return !known || launch.predicted >= kSampleInterval ||
           passed(last_sample_, launch.now, kSampleInterval);
}

// Opens a segment before this launch where one is due. Work that follows the last event at once
// continues from that for free.
void StreamMeter::open_for(Launch& launch, bool known) noexcept {
    if (faults_ >= kFaults || full() || !room_for_events()) return;
    bool continues = false;
    if (mark_is_last_) {
        const CUresult state = real.cuEventQuery(event(mark_));
        continues = state == CUDA_ERROR_NOT_READY;
        if (state == CUDA_SUCCESS) busy_until_ = std::min(busy_until_, launch.now);
    }
    if (continues || due(launch, known)) launch.opens = open(launch.now, continues) && !continues;
}

// Launches that went by without the lock ran between our events, or are nobody's.
void StreamMeter::take_passed() noexcept {
    const Nanos passed = passed_.exchange(0, std::memory_order_relaxed);
    if (passed == 0) return;
    if (open_) {
        current_.predicted += passed;
    } else {
        unmeasured_ += passed;
        mark_is_last_ = false;
    }
}

bool StreamMeter::launch_begins(Launch& launch, Cost& cost) noexcept {
    const bool known = cost.known();
    take_passed();
    if (clock_restarted(last_sample_, launch.now)) restart_clock();
    // A gap in an open segment would be measured as work. An unknown cost is measured by itself.
    if (open_ && launch.now > busy_until_) abandon_segment();
    if (open_ ? !known : mark_is_last_ || due(launch, known)) {
        const Touch touch;
        if (touch && open_) close(launch.now);
        if (touch && !open_) open_for(launch, known);
    }
    mark_is_last_ = false;
    busy_until_ = std::max(busy_until_, launch.now) + launch.predicted;
    if (!open_) {
        unmeasured_ += launch.predicted;
        return false;
    }
    current_.predicted += launch.predicted;
    current_.known = current_.known && known;
    const auto taught = [&](const Segment::Lesson& lesson) { return lesson.cost == &cost; };
    Segment::Lesson* end = current_.lesson + current_.lessons;
    if (std::none_of(current_.lesson, end, taught) && current_.lessons < Segment::kLessons)
        current_.lesson[current_.lessons++] = {&cost, launch.predicted};
    return alone_ || !known || current_.predicted >= kSampleInterval ||
           launch.now - last_sample_ >= kSampleInterval;
}

void StreamMeter::restart_clock() noexcept {
    if (open_) abandon_segment();
    mark_is_last_ = false;
    busy_until_ = last_end_ = last_sample_ = 0;
}

// On a card without work the start event passes as soon as it is recorded, and the first kernel starts as
// soon as it is launched. For a kernel of 20 µs what lies between is a hundredth of its time.
void StreamMeter::first_launched(Nanos now) noexcept {
    current_.stall = now - current_.opened;
    if (current_.recorded != 0)
        current_.lead = std::clamp<Nanos>(now - current_.recorded, 0, kLongestLead);
}

void StreamMeter::launch_failed(const Launch& launch) noexcept {
    if (!launch.holds) {
        passes(-launch.predicted);
    } else if (open_) {
        current_.predicted -= launch.predicted;
        abandon_segment();
    } else {
        unmeasured_ -= std::min(unmeasured_, launch.predicted);
    }
}

// Whether the host lost its processor where the stream had nothing to do: between the start event and
// the first launch, or between the end of the work and the end event. The events then hold time in
// which nothing ran. A few times in a row that is taken for chance; then predictions are what is wrong.
bool StreamMeter::doubtful(Nanos now) const noexcept {
    const Nanos late = std::max<Nanos>(0, now - busy_until_);
    const Nanos allowed = current_.known ? kStall + current_.predicted / 64 : kSampleInterval;
    return doubts_ < kDoubts && current_.stall + late > allowed;
}

void StreamMeter::close(Nanos now) noexcept {
    if (!open_) return;
    take_passed();
    if (full() || now > busy_until_ + kSampleInterval) {
        abandon_segment(); // by now the stream may have been idle for long
        return;
    }
    if (!record(current_.end_event)) return;
    last_sample_ = now;
    if (doubtful(monotonic_now())) {
        ++doubts_;
        abandon_segment();
        return;
    }
    open_ = false;
    alone_ = false;
    doubts_ = 0;
    pending_[(oldest_ + pending_count_.load()) % kPending] = current_;
    pending_count_.fetch_add(1);
}

void StreamMeter::close_if_due(Nanos now) noexcept {
    if (now - last_sample_ >= kSampleInterval) close(now);
}

// The one wait for an event. It is no Touch, since a capture must not wait for it; a thread in relaxed
// mode may do what would otherwise invalidate a capture that begins meanwhile.
void StreamMeter::wait_for_oldest() noexcept {
    const Uncancelled here; // the stream's lock is held
    int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool relaxed = real.cuThreadExchangeStreamCaptureMode != nullptr &&
                         real.cuThreadExchangeStreamCaptureMode(&mode) == CUDA_SUCCESS;
    (void)real.cuEventSynchronize(event(pending_[oldest_].end_event));
    if (relaxed) (void)real.cuThreadExchangeStreamCaptureMode(&mode);
}

bool StreamMeter::oldest_unsettled() const noexcept {
    return has_pending() && real.cuEventQuery(event(pending_[oldest_].end_event)) != CUDA_SUCCESS;
}

bool StreamMeter::still_holds(std::uint32_t sequence) const noexcept {
    return next_event_ - sequence <= kEvents;
}

// Where `end` lies on the host's clock, counted from the anchor. False when the anchor's event was
// recorded anew, its stream is busy launching, or it is so far away that a float of milliseconds
// is too coarse.
bool StreamMeter::place(const Anchor& anchor, CUevent end, Nanos& at) noexcept {
    StreamMeter* other = anchor.stream;
    if (other == nullptr || (other != this && !other->lock.try_lock())) return false;
    float milliseconds = 0;
    const bool known = other->still_holds(anchor.event) &&
                       real.cuEventElapsedTime(&milliseconds, other->event(anchor.event), end) ==
                           CUDA_SUCCESS &&
                       milliseconds > -kAnchorReach && milliseconds < kAnchorReach;
    if (other != this) other->lock.unlock();
    at = anchor.at + static_cast<Nanos>(static_cast<double>(milliseconds) * 1e6);
    return known;
}

// The GPU's clock gives length and place. The host's bounds the place: work starts when its first
// event was recorded or when the work before it ended, whichever is later, and has ended by now.
// Without an anchor it is taken to have started as early as that.
bool StreamMeter::take_finished(Segment& out, Anchor& anchor) noexcept {
    if (!has_pending()) return false;
    Segment& front = pending_[oldest_];
    const CUresult state = real.cuEventQuery(event(front.end_event));
    if (state == CUDA_ERROR_NOT_READY) return false;
    float milliseconds = 0;
    const CUresult measured =
        state != CUDA_SUCCESS ? state
                              : real.cuEventElapsedTime(&milliseconds, event(front.start_event),
                                                        event(front.end_event));
    if (measured != CUDA_SUCCESS) {
        give_up("reading a timing event", measured);
        return false;
    }
    const Nanos now = monotonic_now(); // after the answer: the thread may have stood still before it
    const auto between = std::max<Nanos>(0, static_cast<Nanos>(static_cast<double>(milliseconds) * 1e6));
    const Nanos length = between - std::min(front.lead, between / 2);
    out = front;
    const Nanos earliest = std::max(front.opened, last_end_) + length;
    Nanos placed = earliest;
    if (!place(anchor, event(front.end_event), placed)) placed = earliest;
    out.end = std::min(std::max(placed, earliest), now);
    out.start = out.end - length;
    last_end_ = out.end;
    anchor = {this, front.end_event, out.end};
    oldest_ = (oldest_ + 1) % kPending;
    pending_count_.fetch_sub(1);
    return true;
}

Nanos StreamMeter::unsettled() noexcept {
    Nanos sum = take_unmeasured() + passed_.exchange(0, std::memory_order_relaxed);
    if (open_) sum += current_.predicted;
    for (unsigned count = 0; count < pending_count_.load(); ++count)
        sum += pending_[(oldest_ + count) % kPending].predicted;
    return sum;
}

Nanos StreamMeter::take_unmeasured() noexcept {
    if (!open_) take_passed();
    const Nanos taken = unmeasured_;
    unmeasured_ = 0;
    return taken;
}

} // namespace xpu
