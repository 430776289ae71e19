// SPDX-License-Identifier: Apache-2.0
#ifndef XPU_MONITOR_NVML_H
#define XPU_MONITOR_NVML_H

#include "report.h"

namespace xpu::monitor {

// One view per card of the config; unknown ones where NVML is missing or does not answer.
std::vector<CardView> ask_nvml(const Config& config);

} // namespace xpu::monitor
#endif
