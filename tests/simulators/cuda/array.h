// SPDX-License-Identifier: GPL-3.0-or-later
//
// Arrays: memory with a shape, laid out in rows here (the real layout is nobody's business).
#pragma once

#include "book.h"

namespace simcuda {

struct Array {
  static constexpr std::uint32_t kAlive = 0x41525259;
  std::uint32_t magic = kAlive;
  Device* device = nullptr;
  CUDA_ARRAY3D_DESCRIPTOR shape{};
  CUdeviceptr address = 0;
  bool level = false;  // of a mipmapped array, which owns it

  // Has no memory, and gets none here: cuMemMapArrayAsync is missing.
  bool deferred() const { return (shape.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) != 0; }
  std::size_t row_bytes() const;
  std::size_t rows() const { return shape.Height != 0 ? shape.Height : 1; }
  std::size_t bytes() const { return row_bytes() * rows() * (shape.Depth != 0 ? shape.Depth : 1); }
};

}  // namespace simcuda
