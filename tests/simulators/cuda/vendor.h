// SPDX-License-Identifier: GPL-3.0-or-later
//
// What libcuda and libnvidia-ml know of their vendor beyond the engine.
#pragma once

#include <string>
#include <vector>

#include "layout.h"

namespace simnvidia {

constexpr const char* kSocket = "/run/nvidia-persistenced/socket";
constexpr const char* kPciVendor = "0x10de";

// Indices of the cards, and of the instances of cards, whose device nodes exist where this process runs.
std::vector<std::size_t> visible(const sim::Fleet& fleet);

// The visible cards in the order that CUDA_VISIBLE_DEVICES asks for (null: all). As the real driver,
// the first entry that names no card ends the list; a card in MIG mode is no device, and of instances a process
// sees one alone: the one named, or the first where there is no other card.
std::vector<std::size_t> cuda_visible(const sim::Fleet& fleet, const char* wanted);

// The CUDA version a driver supports, as cuDriverGetVersion says it (580.95.05 -> 13000).
int cuda_version(const std::string& driver_version);

// The version in the file name of the library that holds `symbol` (libcuda.so.580.95.05), or empty:
// a library that was renamed makes no claim.
std::string library_version(const void* symbol);

}  // namespace simnvidia
