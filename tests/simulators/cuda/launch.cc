// SPDX-License-Identifier: GPL-3.0-or-later
//
// Launches.
#include "book.h"
#include "capture.h"
#include "operation.h"

using namespace simcuda;

namespace {

CUresult launch(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                unsigned bz, unsigned shared, CUstream on, void** parameters, void** extra,
                NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  const Keep keep = capturing() || book().any_managed() ? Keep::kParameters : Keep::kNothing;
  simcuda::Launch what;
  const CUresult error =
      describe_launch(handle, {gx, gy, gz}, {bx, by, bz}, shared, parameters, extra, keep, what);
  if (error != CUDA_SUCCESS) return error;
  if (keep == Keep::kParameters) return enqueue(std::move(what), *stream);
  stream->context->device->submit(sim::ItemKind::kWork, what.duration_ns, *stream);
  return CUDA_SUCCESS;
}

CUresult launch_ex(const CUlaunchConfig* how, CUfunction function, void** parameters, void** extra,
                   NullStream null) {
  if (how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return launch(function, how->gridDimX, how->gridDimY, how->gridDimZ, how->blockDimX, how->blockDimY,
                how->blockDimZ, how->sharedMemBytes, how->hStream, parameters, extra, null);
}

}  // namespace

SIM_EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned shared, CUstream stream,
                                   void** parameters, void** extra) {
  return launch(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                        unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                        CUstream stream, void** parameters, void** extra) {
  return launch(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra, NullStream::kPerThread);
}

SIM_EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* how, CUfunction f, void** parameters,
                                     void** extra) {
  return launch_ex(how, f, parameters, extra, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig* how, CUfunction f, void** parameters,
                                          void** extra) {
  return launch_ex(how, f, parameters, extra, NullStream::kPerThread);
}

SIM_EXPORT CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                              unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                              CUstream stream, void** parameters) {
  return launch(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, nullptr, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                                   unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                                   CUstream stream, void** parameters) {
  return launch(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, nullptr, NullStream::kPerThread);
}
