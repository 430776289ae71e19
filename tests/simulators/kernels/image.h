// SPDX-License-Identifier: GPL-3.0-or-later
//
// Images of code: PTX text, cubins (ELF files with machine code) and fatbins (several of both). Only names and
// parameters of the kernels are read; nothing here can run machine code. Pure.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace sim {

enum class ImageError { kNone, kMalformed, kNotForThisCard, kNotPtx, kPacked };

struct Image {
  ImageError error = ImageError::kNone;
  std::vector<Kernel> kernels;
};

// Unpacks a zstd frame of that many bytes; null: whoever calls can't.
using Unzstd = std::function<std::optional<std::string>(std::string_view packed, std::size_t bytes)>;

// An LZ4 block of exactly that many bytes.
std::optional<std::string> unpack_lz4(std::string_view packed, std::size_t bytes);

// `capability` is 10 * major + minor of the card. Machine code runs on cards of its own major version and
// at least its minor one, PTX on any that is at least as new.
Image read_cubin(std::string_view file, int capability);
Image read_fatbin(std::string_view file, int capability, const Unzstd& unzstd);

// How long an image is by its own header; 0 when it is neither cubin nor fatbin. Reads 64 bytes at most.
std::size_t length_of(const void* image);

// Whatever an application hands over: a cubin, a fatbin, the wrapper that nvcc puts around one, or PTX.
Image read_image(const void* image, int capability, const Unzstd& unzstd);

}  // namespace sim
