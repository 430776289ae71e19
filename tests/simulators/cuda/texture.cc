// SPDX-License-Identifier: GPL-3.0-or-later
//
// Texture and surface objects: what they were made of, and nothing more, since nothing reads through them.
#include "array.h"

using namespace simcuda;

namespace {

struct View {
  static constexpr std::uint32_t kAlive = 0x56494557;
  std::uint32_t magic = kAlive;
  bool surface = false;
  CUDA_RESOURCE_DESC resource{};
  CUDA_TEXTURE_DESC texture{};
  CUDA_RESOURCE_VIEW_DESC window{};
};

View* view_of(unsigned long long handle, bool surface) {
  View* view = alive<View>(reinterpret_cast<View*>(handle));
  return view != nullptr && view->surface == surface ? view : nullptr;
}

bool sound(const CUDA_RESOURCE_DESC& from, bool surface) {
  switch (from.resType) {
    case CU_RESOURCE_TYPE_ARRAY: return alive<Array>(from.res.array.hArray) != nullptr;
    case CU_RESOURCE_TYPE_MIPMAPPED_ARRAY: return !surface && from.res.mipmap.hMipmappedArray != nullptr;
    case CU_RESOURCE_TYPE_LINEAR:
      return !surface && book().covers(from.res.linear.devPtr, from.res.linear.sizeInBytes);
    case CU_RESOURCE_TYPE_PITCH2D:
      return !surface && book().covers(from.res.pitch2D.devPtr, from.res.pitch2D.pitchInBytes * from.res.pitch2D.height);
  }
  return false;
}

CUresult create(unsigned long long* handle, const CUDA_RESOURCE_DESC* from, bool surface, View*& view) {
  Context* context = nullptr;
  if (handle == nullptr || from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (!sound(*from, surface)) return CUDA_ERROR_INVALID_VALUE;
  view = new View;
  view->surface = surface;
  view->resource = *from;
  *handle = reinterpret_cast<unsigned long long>(view);
  return CUDA_SUCCESS;
}

CUresult destroy(View* view) {
  if (view == nullptr) return CUDA_ERROR_INVALID_VALUE;
  view->magic = 0;
  delete view;
  return CUDA_SUCCESS;
}

template <class Desc>
CUresult tell(Desc* out, const View* view, Desc View::*which) {
  if (out == nullptr || view == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *out = view->*which;
  return CUDA_SUCCESS;
}

}  // namespace

SIM_EXPORT CUresult cuTexObjectCreate(CUtexObject* handle, const CUDA_RESOURCE_DESC* from,
                                      const CUDA_TEXTURE_DESC* how, const CUDA_RESOURCE_VIEW_DESC* window) {
  View* view = nullptr;
  if (how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = create(handle, from, false, view)) return error;
  view->texture = *how;
  if (window != nullptr) view->window = *window;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuTexObjectDestroy(CUtexObject handle) { return destroy(view_of(handle, false)); }

SIM_EXPORT CUresult cuTexObjectGetResourceDesc(CUDA_RESOURCE_DESC* out, CUtexObject handle) {
  return tell(out, view_of(handle, false), &View::resource);
}

SIM_EXPORT CUresult cuTexObjectGetTextureDesc(CUDA_TEXTURE_DESC* out, CUtexObject handle) {
  return tell(out, view_of(handle, false), &View::texture);
}

SIM_EXPORT CUresult cuTexObjectGetResourceViewDesc(CUDA_RESOURCE_VIEW_DESC* out, CUtexObject handle) {
  return tell(out, view_of(handle, false), &View::window);
}

SIM_EXPORT CUresult cuSurfObjectCreate(CUsurfObject* handle, const CUDA_RESOURCE_DESC* from) {
  View* view = nullptr;
  return create(handle, from, true, view);
}

SIM_EXPORT CUresult cuSurfObjectDestroy(CUsurfObject handle) { return destroy(view_of(handle, true)); }

SIM_EXPORT CUresult cuSurfObjectGetResourceDesc(CUDA_RESOURCE_DESC* out, CUsurfObject handle) {
  return tell(out, view_of(handle, true), &View::resource);
}
