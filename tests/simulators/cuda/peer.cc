// SPDX-License-Identifier: GPL-3.0-or-later
//
// Cards that reach each other. A profile says whether its cards can (`peer_access`); copies between cards work
// anyway, as on real ones, where they then go through the host.
#include "capture.h"
#include "operation.h"

using namespace simcuda;

namespace {

CUresult copy(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
              std::size_t bytes, CUstream on, bool wait, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (alive<Context>(to_context) == nullptr || alive<Context>(from_context) == nullptr) {
    return CUDA_ERROR_INVALID_CONTEXT;
  }
  if (bytes == 0) return CUDA_SUCCESS;
  const Copy what = linear_copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, true, true);
  if (const CUresult error = check(what)) return error;
  if (!wait) return enqueue(what, *stream);
  return copy_now(what, *stream);
}

CUresult copy(const CUDA_MEMCPY3D_PEER* from, CUstream on, bool wait, NullStream null) {
  Stream* stream = nullptr;
  if (from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  Copy what{};
  what.srcXInBytes = from->srcXInBytes;
  what.srcY = from->srcY;
  what.srcZ = from->srcZ;
  what.srcMemoryType = from->srcMemoryType;
  what.srcHost = from->srcHost;
  what.srcDevice = from->srcDevice;
  what.srcArray = from->srcArray;
  what.srcPitch = from->srcPitch;
  what.srcHeight = from->srcHeight;
  what.dstXInBytes = from->dstXInBytes;
  what.dstY = from->dstY;
  what.dstZ = from->dstZ;
  what.dstMemoryType = from->dstMemoryType;
  what.dstHost = from->dstHost;
  what.dstDevice = from->dstDevice;
  what.dstArray = from->dstArray;
  what.dstPitch = from->dstPitch;
  what.dstHeight = from->dstHeight;
  what.WidthInBytes = from->WidthInBytes;
  what.Height = from->Height;
  what.Depth = from->Depth;
  if (what.WidthInBytes == 0 || what.Height == 0 || what.Depth == 0) return CUDA_SUCCESS;
  if (const CUresult error = check(what)) return error;
  return wait ? copy_now(what, *stream) : enqueue(what, *stream);
}

}  // namespace

SIM_EXPORT CUresult cuDeviceGetP2PAttribute(int* value, CUdevice_P2PAttribute which, CUdevice from,
                                            CUdevice to) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  int can = 0;
  if (const CUresult error = cuDeviceCanAccessPeer(&can, from, to)) return error;
  if (from == to) return CUDA_ERROR_INVALID_DEVICE;
  switch (which) {
    case CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK: *value = 0; return CUDA_SUCCESS;
    case CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED:
    case CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED: *value = can; return CUDA_SUCCESS;
    case CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED:
      *value = can != 0 && Driver::get().device(from)->number("nvlink", 0) != 0 ? 1 : 0;
      return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}

SIM_EXPORT CUresult cuCtxEnablePeerAccess(CUcontext handle, unsigned flags) {
  Context* context = nullptr;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  const Context* peer = alive<Context>(handle);
  if (peer == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (!peers(*context->device, *peer->device)) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  const std::lock_guard<std::mutex> held(context->lock);
  return context->peers.insert(peer).second ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}

SIM_EXPORT CUresult cuCtxDisablePeerAccess(CUcontext handle) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  const Context* peer = alive<Context>(handle);
  if (peer == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  const std::lock_guard<std::mutex> held(context->lock);
  return context->peers.erase(peer) != 0 ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

#define PEER_COPIES(sync, async, null)                                                               \
  SIM_EXPORT CUresult cuMemcpyPeer##sync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,     \
                                        CUcontext from_context, std::size_t bytes) {                \
    return copy(to, to_context, from, from_context, bytes, nullptr, true, null);                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyPeerAsync##async(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, \
                                              CUcontext from_context, std::size_t bytes,            \
                                              CUstream on) {                                        \
    return copy(to, to_context, from, from_context, bytes, on, false, null);                         \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy3DPeer##sync(const CUDA_MEMCPY3D_PEER* what) {                         \
    return copy(what, nullptr, true, null);                                                          \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy3DPeerAsync##async(const CUDA_MEMCPY3D_PEER* what, CUstream on) {      \
    return copy(what, on, false, null);                                                              \
  }
PEER_COPIES(, , NullStream::kLegacy)
PEER_COPIES(_ptds, _ptsz, NullStream::kPerThread)
