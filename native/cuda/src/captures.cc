// SPDX-License-Identifier: Apache-2.0
#include "captures.h"

#include <ctime>
#include <pthread.h>

#include "xpu/log.h"

namespace xpu {
namespace {

// How often and how long a capture waits for others to take their hands off events: a second in all,
// then it begins anyway. Only a thread that was cancelled inside the driver makes it wait so long.
constexpr int kLooks = 20'000;
constexpr long kLookEvery = 50'000;

} // namespace

Captures captures;

// Handles and thread ids are addresses of objects, so their lowest bits are free to tell them apart.
StreamKey key_of(CUstream stream) noexcept {
    if (stream == nullptr) return reinterpret_cast<StreamKey>(XPU_STREAM_LEGACY);
    if (stream == XPU_STREAM_PER_THREAD) return static_cast<StreamKey>(pthread_self()) | 2;
    return reinterpret_cast<StreamKey>(stream);
}

void Captures::begins() noexcept {
    count_.fetch_add(1);
    for (int look = 0; touching_.load() > 0 && look < kLooks; ++look) {
        const timespec nap = {0, kLookEvery};
        (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, nullptr);
    }
}

void Captures::began(CUcontext context, StreamKey origin) noexcept {
    Hold hold(lock_);
    for (Origin& place : origins_) {
        if (place.stream != 0) continue;
        place = {context, origin};
        return;
    }
    XPU_LOG_ONCE("more than %u captures at once: work is charged as predicted from now on", kOrigins);
}

void Captures::ended(StreamKey origin) noexcept {
    Hold hold(lock_);
    for (Origin& place : origins_) {
        if (place.stream != origin) continue;
        place = {};
        count_.fetch_sub(1);
        return;
    }
}

void Captures::context_ended(CUcontext context) noexcept {
    Hold hold(lock_);
    for (Origin& place : origins_) {
        if (place.stream == 0 || place.context != context) continue;
        place = {};
        count_.fetch_sub(1);
    }
}

void Captures::forget_all() noexcept {
    lock_.unlock();
    for (Origin& place : origins_) place = {};
    count_.store(0);
    touching_.store(0);
}

} // namespace xpu
