// SPDX-License-Identifier: GPL-3.0-or-later
//
// Modules and functions. A module's image is PTX text; what it holds is read by kernels/.
#include <cstring>
#include <string_view>

#include "capture.h"

using namespace simcuda;

namespace {

constexpr std::string_view kElf = "\x7f"
                                  "ELF";
constexpr std::uint32_t kFatbin = 0xba55ed50;

// A cubin or fatbin holds machine code, which can't be run here; the real driver's answer for code
// that doesn't fit the card is the nearest truth.
bool machine_code(const void* image) {
  std::uint32_t first = 0;
  std::memcpy(&first, image, sizeof(first));
  return std::memcmp(image, kElf.data(), kElf.size()) == 0 || first == kFatbin;
}

CUresult load(CUmodule* handle, const void* image) {
  Context* context = nullptr;
  std::vector<sim::Kernel> kernels;
  if (handle == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (const CUresult error = read_image(image, kernels)) return error;
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

CUresult simcuda::read_image(const void* image, std::vector<sim::Kernel>& kernels) {
  const auto* text = static_cast<const char*>(image);
  if (strnlen(text, 4) == 4 && machine_code(image)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  auto found = sim::parse_ptx(text);
  if (!found) return CUDA_ERROR_INVALID_PTX;
  kernels = std::move(*found);
  return CUDA_SUCCESS;
}

Context* Function::context() const { return module != nullptr ? module->context : nullptr; }

SIM_EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return load(module, image);
}

SIM_EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned,
                                       CUjit_option*, void**) {
  return load(module, image);
}

SIM_EXPORT CUresult cuModuleLoad(CUmodule* module, const char* path) {
  if (path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  try {
    return load(module, sim::read_text(path).c_str());
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
