// SPDX-License-Identifier: GPL-3.0-or-later
//
// Libraries: code that is loaded once for all contexts (of a fatbin, what fits card 0). A kernel's handle serves as a function's, too.
#include <algorithm>
#include <cstring>

#include "capture.h"

using namespace simcuda;

namespace {

CUresult load(CUlibrary* handle, const void* image) {
  std::vector<sim::Kernel> kernels;
  if (handle == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (const CUresult error = read_image(image, *Driver::get().device(0), kernels)) return error;
  auto library = std::make_unique<Library>();
  for (sim::Kernel& kernel : kernels) {
    auto function = std::make_unique<Function>();
    function->library = library.get();
    function->kernel = std::move(kernel);
    library->kernels.push_back(std::move(function));
  }
  *handle = reinterpret_cast<CUlibrary>(library.release());
  return CUDA_SUCCESS;
}

Function* kernel_of(CUkernel handle) {
  Function* function = alive<Function>(handle);
  return function != nullptr && function->library != nullptr ? function : nullptr;
}

}  // namespace

SIM_EXPORT CUresult cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**,
                                      unsigned, CUlibraryOption*, void**, unsigned) {
  return load(library, image);
}

SIM_EXPORT CUresult cuLibraryLoadFromFile(CUlibrary* library, const char* path, CUjit_option*, void**,
                                          unsigned, CUlibraryOption*, void**, unsigned) {
  if (path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  try {
    const std::string text = sim::read_text(path);
    return whole(text) ? load(library, text.c_str()) : CUDA_ERROR_INVALID_IMAGE;
  } catch (const std::exception&) {
    return CUDA_ERROR_FILE_NOT_FOUND;
  }
}

SIM_EXPORT CUresult cuLibraryUnload(CUlibrary handle) {
  Library* library = alive<Library>(handle);
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (const auto& kernel : library->kernels) kernel->magic = 0;
  library->magic = 0;
  delete library;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary handle, const char* name) {
  const Library* library = alive<Library>(handle);
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (kernel == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (const auto& function : library->kernels) {
    if (function->kernel.name != name) continue;
    *kernel = reinterpret_cast<CUkernel>(function.get());
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}

SIM_EXPORT CUresult cuLibraryGetKernelCount(unsigned* count, CUlibrary handle) {
  const Library* library = alive<Library>(handle);
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *count = static_cast<unsigned>(library->kernels.size());
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLibraryEnumerateKernels(CUkernel* kernels, unsigned count, CUlibrary handle) {
  const Library* library = alive<Library>(handle);
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (kernels == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < std::min<std::size_t>(count, library->kernels.size()); ++i) {
    kernels[i] = reinterpret_cast<CUkernel>(library->kernels[i].get());
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLibraryGetGlobal(CUdeviceptr*, std::size_t*, CUlibrary library, const char*) {
  return alive<Library>(library) != nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  Context* context = nullptr;
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  *function = reinterpret_cast<CUfunction>(kernel_of(kernel));
  return *function != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuKernelGetLibrary(CUlibrary* library, CUkernel handle) {
  const Function* kernel = kernel_of(handle);
  if (library == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *library = reinterpret_cast<CUlibrary>(kernel->library);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuKernelGetName(const char** name, CUkernel handle) {
  const Function* kernel = kernel_of(handle);
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *name = kernel->kernel.name.c_str();
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuKernelGetAttribute(int* value, CUfunction_attribute which, CUkernel kernel, CUdevice) {
  return cuFuncGetAttribute(value, which, reinterpret_cast<CUfunction>(kernel));
}

SIM_EXPORT CUresult cuKernelSetAttribute(CUfunction_attribute which, int value, CUkernel kernel, CUdevice) {
  return cuFuncSetAttribute(reinterpret_cast<CUfunction>(kernel), which, value);
}
