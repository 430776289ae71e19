// SPDX-License-Identifier: GPL-3.0-or-later
//
// Modules and functions. What a module's image holds is read by kernels/.
#include <dlfcn.h>

#include <cstring>
#include <string_view>

#include "capture.h"
#include "image.h"

using namespace simcuda;

namespace {

// The system's libzstd, if there is one: newer compilers pack fatbins with it.
std::optional<std::string> unzstd(std::string_view packed, std::size_t bytes) {
  using Decompress = std::size_t (*)(void*, std::size_t, const void*, std::size_t);
  static const auto decompress = [] {
    void* library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<Decompress>(library != nullptr ? dlsym(library, "ZSTD_decompress") : nullptr);
  }();
  constexpr std::size_t kMost = std::size_t{1} << 30;
  if (decompress == nullptr || bytes > kMost) return std::nullopt;
  std::string out(bytes, '\0');
  // Its errors are numbers near the largest.
  if (decompress(out.data(), bytes, packed.data(), packed.size()) != bytes) return std::nullopt;
  return out;
}

CUresult load(CUmodule* handle, const void* image) {
  Context* context = nullptr;
  std::vector<sim::Kernel> kernels;
  if (handle == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (const CUresult error = read_image(image, *context->device, kernels)) return error;
  auto module = std::make_unique<Module>();
  module->context = context;
  for (sim::Kernel& kernel : kernels) {
    auto function = std::make_unique<Function>();
    function->module = module.get();
    function->kernel = std::move(kernel);
    module->functions.push_back(std::move(function));
  }
  *handle = reinterpret_cast<CUmodule>(module.release());
  return CUDA_SUCCESS;
}

}  // namespace

CUresult simcuda::read_image(const void* image, const Device& device, std::vector<sim::Kernel>& kernels) {
  int major = 0;
  int minor = 0;
  compute_capability(device, major, minor);
  sim::Image found = sim::read_image(image, 10 * major + minor, unzstd);
  switch (found.error) {
    case sim::ImageError::kNone: break;
    case sim::ImageError::kMalformed: return CUDA_ERROR_INVALID_IMAGE;
    case sim::ImageError::kNotForThisCard: return CUDA_ERROR_NO_BINARY_FOR_GPU;
    case sim::ImageError::kNotPtx: return CUDA_ERROR_INVALID_PTX;
    case sim::ImageError::kPacked: return CUDA_ERROR_NOT_SUPPORTED;
  }
  kernels = std::move(found.kernels);
  return CUDA_SUCCESS;
}

bool simcuda::whole(const std::string& file) {
  constexpr std::size_t kHeader = 64;
  return file.size() < kHeader ? file.compare(0, 4, "\x7f""ELF") != 0 : sim::length_of(file.data()) <= file.size();
}

Context* Function::context() const { return module != nullptr ? module->context : nullptr; }

SIM_EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return load(module, image);
}

SIM_EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned,
                                       CUjit_option*, void**) {
  return load(module, image);
}

SIM_EXPORT CUresult cuModuleLoadFatBinary(CUmodule* module, const void* image) {
  return load(module, image);
}

SIM_EXPORT CUresult cuModuleLoad(CUmodule* module, const char* path) {
  if (path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  try {
    const std::string text = sim::read_text(path);
    return whole(text) ? load(module, text.c_str()) : CUDA_ERROR_INVALID_IMAGE;
  } catch (const std::exception&) {
    return CUDA_ERROR_FILE_NOT_FOUND;
  }
}

SIM_EXPORT CUresult cuModuleUnload(CUmodule handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Module* module = alive<Module>(handle);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  module->magic = 0;
  delete module;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleGetFunction(CUfunction* handle, CUmodule from, const char* name) {
  if (handle == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  Module* module = alive<Module>(from);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (const auto& function : module->functions) {
    if (function->kernel.name != name) continue;
    *handle = reinterpret_cast<CUfunction>(function.get());
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}

SIM_EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr*, std::size_t*, CUmodule from, const char*) {
  return alive<Module>(from) != nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  if (mode == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *mode = CU_MODULE_EAGER_LOADING;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncGetModule(CUmodule* module, CUfunction handle) {
  const Function* function = alive<Function>(handle);
  if (function == nullptr || module == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *module = reinterpret_cast<CUmodule>(function->module);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
  if (value == nullptr || which < 0 || which >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
  if (alive<Function>(handle) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = 49152; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute, int) {
  return alive<Function>(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache) {
  return alive<Function>(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
