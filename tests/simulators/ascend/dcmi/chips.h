// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the simulated npu-smi, which holds the simulated DCMI, asks it beside the public interface.
#pragma once

#include "hardware.h"

namespace simascend {

// The profile of a visible card; throws where there is none. After dcmi_init().
const sim::Settings& profile_of_card(int card_id);

}  // namespace simascend
