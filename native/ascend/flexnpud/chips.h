// SPDX-License-Identifier: Apache-2.0
//
// Which chips this host has, by DCMI.
#pragma once

#include <string>
#include <vector>

#include "registry.h"

namespace flexnpu {

// Throws std::runtime_error that says what failed. The library stays loaded.
std::vector<Chip> find_chips(const std::string& dcmi_lib_file);

} // namespace flexnpu
