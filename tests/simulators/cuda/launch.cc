// SPDX-License-Identifier: GPL-3.0-or-later
//
// Launches.
#include <cstdint>

#include "driver.h"

using namespace simcuda;

namespace {

bool sound_shape(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz) {
  const std::uint64_t threads = static_cast<std::uint64_t>(bx) * by * bz;
  return gx != 0 && gy != 0 && gz != 0 && gx <= 2147483647u && gy <= 65535 && gz <= 65535 &&
         threads != 0 && bx <= 1024 && by <= 1024 && bz <= 64 && threads <= 1024;
}

CUresult arguments_of(void** parameters, void** extra, sim::Arguments& arguments) {
  arguments.each = parameters;
  if (extra == nullptr) return CUDA_SUCCESS;
  if (parameters != nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) arguments.packed = extra[1];
    else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) arguments.packed_size = *static_cast<std::size_t*>(extra[1]);
    else return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult launch(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                unsigned bz, CUstream on, void** parameters, void** extra, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  const Function* function = alive<Function>(handle);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!sound_shape(gx, gy, gz, bx, by, bz)) return CUDA_ERROR_INVALID_VALUE;
  sim::Arguments arguments;
  if (const CUresult error = arguments_of(parameters, extra, arguments)) return error;
  const bool given = arguments.each != nullptr || arguments.packed != nullptr;
  if (!function->kernel.parameters.empty() && !given) return CUDA_ERROR_INVALID_VALUE;
  Device& device = *stream->context->device;
  device.submit(sim::ItemKind::kWork,
                sim::duration_ns(function->kernel, arguments, device.default_kernel_ns()), *stream);
  return CUDA_SUCCESS;
}

CUresult launch_ex(const CUlaunchConfig* how, CUfunction function, void** parameters, void** extra,
                   NullStream null) {
  if (how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return launch(function, how->gridDimX, how->gridDimY, how->gridDimZ, how->blockDimX, how->blockDimY,
                how->blockDimZ, how->hStream, parameters, extra, null);
}

}  // namespace

SIM_EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned, CUstream stream,
                                   void** parameters, void** extra) {
  return launch(f, gx, gy, gz, bx, by, bz, stream, parameters, extra, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                        unsigned bx, unsigned by, unsigned bz, unsigned,
                                        CUstream stream, void** parameters, void** extra) {
  return launch(f, gx, gy, gz, bx, by, bz, stream, parameters, extra, NullStream::kPerThread);
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
                                              unsigned bx, unsigned by, unsigned bz, unsigned,
                                              CUstream stream, void** parameters) {
  return launch(f, gx, gy, gz, bx, by, bz, stream, parameters, nullptr, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                                   unsigned bx, unsigned by, unsigned bz, unsigned,
                                                   CUstream stream, void** parameters) {
  return launch(f, gx, gy, gz, bx, by, bz, stream, parameters, nullptr, NullStream::kPerThread);
}
