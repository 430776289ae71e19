// SPDX-License-Identifier: Apache-2.0
//
// What this container was given: its pages, and which of its cards a device of this process is.
#ifndef XPU_ASCEND_SLICE_H
#define XPU_ASCEND_SLICE_H

#include "gate.h"
#include "xpu/slice.h"

namespace ascend {

class Slice {
  public:
    // Null where there is no usable config page: then nothing is limited, which XPU_LOG says once.
    static Slice* get() noexcept;

    // The card of this device of the calling thread, or -1: not limited here. By die id, never by ordinal:
    // ASCEND_RT_VISIBLE_DEVICES gives every process numbers of its own.
    int current_card() noexcept;
    int card_of(std::int32_t device) noexcept;

    std::uint64_t quota(unsigned card) noexcept; // 0: none
    xpu::Ledger& ledger() noexcept { return ledger_; }
    Gate* gate(unsigned card) noexcept; // null: no grant page, so time is not limited

  private:
    static constexpr int kDevices = 64;
    static Slice* open() noexcept;
    static void forget() noexcept; // in a forked child

    const xpu_config_page* page_ = nullptr;
    xpu::Config config_;
    xpu::Ledger ledger_;
    Pages pages_;
    std::atomic<Gate*> gates_[XPU_MAX_CARDS] = {};
    std::atomic<int> cards_[kDevices] = {}; // card + 2; 0: not asked yet
};

} // namespace ascend
#endif
