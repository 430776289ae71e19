// SPDX-License-Identifier: GPL-3.0-or-later
#include "array.h"

#include <algorithm>

#include "capture.h"

namespace simcuda {
namespace {

// Bytes of one channel of an element; 0 for a format that isn't known here.
std::size_t channel_bytes(CUarray_format format) {
  switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8: return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF: return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT: return 4;
    default: return 0;
  }
}

bool sound(const CUDA_ARRAY3D_DESCRIPTOR& shape) {
  const unsigned channels = shape.NumChannels;
  return channel_bytes(shape.Format) != 0 && (channels == 1 || channels == 2 || channels == 4) &&
         shape.Width != 0 && shape.Width <= 131072 && shape.Height <= 131072 && shape.Depth <= 16384 &&
         (shape.Depth == 0 || shape.Height != 0 || (shape.Flags & CUDA_ARRAY3D_LAYERED) != 0);
}

CUresult create(const CUDA_ARRAY3D_DESCRIPTOR& shape, Array*& made) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (!sound(shape)) return CUDA_ERROR_INVALID_VALUE;
  auto array = std::make_unique<Array>();
  array->device = context->device;
  array->shape = shape;
  if (array->deferred()) {
    made = array.release();
    return CUDA_SUCCESS;
  }
  const CUresult error =
      book().allocate(*context->device, array->bytes(), Kind::kDevice, nullptr, array->address);
  if (error == CUDA_SUCCESS) {
    book().own(array->address, context);
    made = array.release();
  }
  return error;
}

CUresult create(CUarray* handle, const CUDA_ARRAY3D_DESCRIPTOR& shape) {
  Array* made = nullptr;
  if (const CUresult error = create(shape, made)) return error;
  *handle = reinterpret_cast<CUarray>(made);
  return CUDA_SUCCESS;
}

CUresult destroy(Array* array) {
  array->device->wait(array->device->submitted());
  if (!array->deferred()) book().release(array->address);
  array->magic = 0;
  delete array;
  return CUDA_SUCCESS;
}

// What the card is charged for it.
std::size_t cost(const Array& array) {
  return rounded(array.bytes(), array.bytes() >= kGranule ? kGranule : kAlignment);
}

struct Mipmap {
  static constexpr std::uint32_t kAlive = 0x4d49504d;
  std::uint32_t magic = kAlive;
  std::vector<Array*> levels;
};

std::size_t halved(std::size_t extent, unsigned times) {
  return extent == 0 ? 0 : std::max<std::size_t>(extent >> times, 1);
}

unsigned most_levels(const CUDA_ARRAY3D_DESCRIPTOR& shape) {
  const bool layered = (shape.Flags & CUDA_ARRAY3D_LAYERED) != 0;
  std::size_t largest = std::max({shape.Width, shape.Height, layered ? 0 : shape.Depth});
  unsigned levels = 1;
  while (largest >>= 1) ++levels;
  return levels;
}

}  // namespace

std::size_t Array::row_bytes() const {
  return rounded(shape.Width * shape.NumChannels * channel_bytes(shape.Format), kAlignment);
}

}  // namespace simcuda

using namespace simcuda;

SIM_EXPORT CUresult cuArrayCreate_v2(CUarray* handle, const CUDA_ARRAY_DESCRIPTOR* shape) {
  if (handle == nullptr || shape == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return create(handle, {shape->Width, shape->Height, 0, shape->Format, shape->NumChannels, 0});
}

SIM_EXPORT CUresult cuArray3DCreate_v2(CUarray* handle, const CUDA_ARRAY3D_DESCRIPTOR* shape) {
  if (handle == nullptr || shape == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return create(handle, *shape);
}

SIM_EXPORT CUresult cuArrayDestroy(CUarray handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Array* array = alive<Array>(handle);
  if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (array->level) return CUDA_ERROR_INVALID_HANDLE;
  return destroy(array);
}

SIM_EXPORT CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR* shape, CUarray handle) {
  const Array* array = alive<Array>(handle);
  if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (shape == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *shape = {array->shape.Width, array->shape.Height, array->shape.Format, array->shape.NumChannels};
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR* shape, CUarray handle) {
  const Array* array = alive<Array>(handle);
  if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (shape == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *shape = array->shape;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray* handle, const CUDA_ARRAY3D_DESCRIPTOR* shape,
                                           unsigned levels) {
  if (handle == nullptr || shape == nullptr || levels == 0) return CUDA_ERROR_INVALID_VALUE;
  auto mipmap = std::make_unique<Mipmap>();
  const bool layered = (shape->Flags & CUDA_ARRAY3D_LAYERED) != 0;
  for (unsigned level = 0; level < std::min(levels, most_levels(*shape)); ++level) {
    CUDA_ARRAY3D_DESCRIPTOR smaller = *shape;
    smaller.Width = halved(shape->Width, level);
    smaller.Height = halved(shape->Height, level);
    if (!layered) smaller.Depth = halved(shape->Depth, level);
    Array* array = nullptr;
    if (const CUresult error = create(smaller, array)) {
      for (Array* made : mipmap->levels) destroy(made);
      return error;
    }
    array->level = true;
    mipmap->levels.push_back(array);
  }
  *handle = reinterpret_cast<CUmipmappedArray>(mipmap.release());
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMipmappedArrayGetLevel(CUarray* level, CUmipmappedArray handle, unsigned number) {
  const Mipmap* mipmap = alive<Mipmap>(handle);
  if (mipmap == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (level == nullptr || number >= mipmap->levels.size()) return CUDA_ERROR_INVALID_VALUE;
  *level = reinterpret_cast<CUarray>(mipmap->levels[number]);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray handle) {
  Mipmap* mipmap = alive<Mipmap>(handle);
  if (mipmap == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (Array* level : mipmap->levels) destroy(level);
  mipmap->magic = 0;
  delete mipmap;
  return CUDA_SUCCESS;
}

// Only arrays whose memory is mapped later have requirements.
SIM_EXPORT CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS* needs, CUarray handle,
                                                 CUdevice ordinal) {
  const Array* array = alive<Array>(handle);
  if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (needs == nullptr || !array->deferred() || Driver::get().device(ordinal) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *needs = {};
  needs->size = cost(*array);
  needs->alignment = kAlignment;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS* needs,
                                                          CUmipmappedArray handle, CUdevice ordinal) {
  const Mipmap* mipmap = alive<Mipmap>(handle);
  if (mipmap == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const bool deferred = mipmap->levels[0]->deferred();
  if (needs == nullptr || !deferred || Driver::get().device(ordinal) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *needs = {};
  for (const Array* level : mipmap->levels) needs->size += cost(*level);
  needs->alignment = kAlignment;
  return CUDA_SUCCESS;
}
