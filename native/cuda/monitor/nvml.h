// SPDX-License-Identifier: Apache-2.0
#ifndef XPU_MONITOR_NVML_H
#define XPU_MONITOR_NVML_H

#include "report.h"

namespace xpu::monitor {

// The cards' own figures over a period: the driver's NVML, not ours that shows the slice.
class CardWatch {
  public:
    explicit CardWatch(const Config& config);
    void sample();
    // The mean of the samples, one view per card of the config; unknown ones where NVML is missing
    // or does not answer.
    std::vector<CardView> views() const;

  private:
    struct Card {
        struct NvmlDevice* device = nullptr;
        std::uint64_t percent_sum = 0;
        std::uint64_t samples = 0;
        std::uint64_t total_bytes = 0;
    };
    std::vector<Card> cards_;
};

} // namespace xpu::monitor
#endif
