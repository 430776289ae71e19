// SPDX-License-Identifier: Apache-2.0
#include "flight.h"

#include <algorithm>
#include <ctime>

#include "real.h"

namespace ascend {
namespace {

constexpr std::int32_t kMostWaitMs = 1000;

rtError wait_event(void* event, std::int32_t milliseconds) {
    if (const auto bounded = XPU_REAL("rtEventSynchronizeWithTimeout", rtError (*)(void*, std::int32_t)))
        return bounded(event, milliseconds);
    const auto unbounded = XPU_REAL("rtEventSynchronize", rtError (*)(void*)); // CANN before 8
    return unbounded == nullptr ? kNone : unbounded(event);
}

rtError wait_stream(void* stream, std::int32_t milliseconds) {
    if (const auto bounded = XPU_REAL("rtStreamSynchronizeWithTimeout", rtError (*)(void*, std::int32_t)))
        return bounded(stream, milliseconds);
    const auto unbounded = XPU_REAL("rtStreamSynchronize", rtError (*)(void*));
    return unbounded == nullptr ? kNone : unbounded(stream);
}

void* current_context() {
    const auto get = XPU_REAL("rtCtxGetCurrent", rtError (*)(void**));
    void* context = nullptr;
    return get != nullptr && get(&context) == kNone ? context : nullptr;
}

std::int64_t milliseconds_now() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1'000'000;
}

} // namespace

void Flight::drop(const Mark& mark) {
    const auto destroy = XPU_REAL("rtEventDestroy", rtError (*)(void*));
    for (void* const event : mark.events)
        if (destroy != nullptr) destroy(event);
}

void Flight::make_room(std::uint32_t most) {
    while (under_way_ >= std::max(1U, most) && !marks_.empty()) {
        for (void* const event : marks_.front().events) wait_event(event, kMostWaitMs);
        under_way_ -= std::min(under_way_, marks_.front().operators);
        drop(marks_.front());
        marks_.pop_front();
    }
}

void Flight::started(void* stream, std::uint32_t most) {
    const Place place{current_context(), stream};
    for (auto* const list : {&touched_, &batch_})
        if (std::find(list->begin(), list->end(), place) == list->end()) list->push_back(place);
    ++under_way_;
    // Half of what is allowed: one half can be waited for while the card has the other.
    if (++in_batch_ >= std::max(1U, most / 2)) mark();
}

void Flight::mark() {
    const auto create = XPU_REAL("rtEventCreate", rtError (*)(void**));
    const auto record = XPU_REAL("rtEventRecord", rtError (*)(void*, void*));
    Mark made{{}, in_batch_};
    for (const Place& place : batch_) {
        void* event = nullptr;
        if (create == nullptr || record == nullptr || create(&event) != kNone) continue;
        if (record(event, place.stream) == kNone) made.events.push_back(event);
        else drop({{event}, 0});
    }
    marks_.push_back(std::move(made));
    batch_.clear();
    in_batch_ = 0;
}

bool Flight::drain(std::int32_t milliseconds) {
    const auto set_context = XPU_REAL("rtCtxSetCurrent", rtError (*)(void*));
    const std::int64_t end = milliseconds_now() + milliseconds;
    bool done = true;
    for (const Place& place : touched_) {
        if (place.context != nullptr && set_context != nullptr) set_context(place.context);
        const std::int64_t left = std::max<std::int64_t>(1, end - milliseconds_now());
        done = wait_stream(place.stream, static_cast<std::int32_t>(left)) == kNone && done;
    }
    forget_all();
    return done;
}

void Flight::forget_stream(void* stream) {
    for (auto* const list : {&touched_, &batch_})
        list->erase(std::remove_if(list->begin(), list->end(), [&](const Place& p) { return p.stream == stream; }),
                    list->end());
}

void Flight::forget_context(void* context) {
    for (auto* const list : {&touched_, &batch_})
        list->erase(std::remove_if(list->begin(), list->end(), [&](const Place& p) { return p.context == context; }),
                    list->end());
}

void Flight::forget_all() {
    for (const Mark& mark : marks_) drop(mark);
    marks_.clear();
    touched_.clear();
    batch_.clear();
    in_batch_ = under_way_ = 0;
}

} // namespace ascend
