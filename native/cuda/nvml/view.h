// SPDX-License-Identifier: Apache-2.0
//
// What this process may be shown of its slice: the grant, and the ledger as it is and was. One
// object, initialised at the first hooked call, never torn down.
#ifndef XPU_NVML_VIEW_H
#define XPU_NVML_VIEW_H

#include <atomic>

#include "../src/lock.h"
#include "real.h"
#include "usage.h"
#include "xpu/slice.h"

namespace xpu::nvml {

constexpr int kNoCard = -1;
constexpr unsigned kUuidText = 96; // NVML's own bound, NVML_DEVICE_UUID_V2_BUFFER_SIZE

class View {
  public:
    // True when this process has a slice. The first call maps the pages and takes a reading.
    bool active() noexcept;

    // The card of the slice behind a device; kNoCard: none, or the driver does not say.
    int card_of(nvmlDevice_t device) noexcept;
    // False only for a device that is known to be no card of the slice.
    bool shows(nvmlDevice_t device) noexcept;
    // The name of the MIG instance that the slice is of; false where it is of whole cards.
    bool instance(char (&uuid)[kUuidText]) noexcept;

    // Bytes granted on a card, and bytes its processes hold; false where nothing is limited.
    bool memory(int card, std::uint64_t& quota, std::uint64_t& used) noexcept;
    // Is compute time of this card measured? Without a limit it is not.
    bool measures(int card) noexcept;

    void processes(int card, Usage& out) noexcept;
    // Usage up to now since CLOCK_MONOTONIC `since` (0: the last window). The first answer takes
    // up to one window. False: nothing new after `since`.
    bool usage(int card, Nanos since, Usage& out) noexcept;

    void after_fork() noexcept;

  private:
    enum class State { kFresh, kBusy, kIdle, kActive };

    void initialise() noexcept;
    State map_pages() noexcept;
    bool config(Config& out) noexcept;
    void read(Reading& out) noexcept;
    enum class Answer { kGiven, kNothingNew, kTooEarly };
    Answer try_usage(int card, Nanos since, bool waited, Usage& out, Nanos& missing) noexcept;

    std::atomic<State> state_{State::kFresh};
    const xpu_config_page* page_ = nullptr;
    xpu_config_page made_page_ = {};
    const xpu_ledger_page* ledger_ = nullptr;
    int ledger_fd_ = -1;
    SpinLock reading_; // of current_ and history_
    Reading current_;
    History history_;
};

extern View view;

Nanos monotonic_now() noexcept;

} // namespace xpu::nvml
#endif
