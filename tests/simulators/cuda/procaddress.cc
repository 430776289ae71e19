// SPDX-License-Identifier: GPL-3.0-or-later
//
// cuGetProcAddress, by the table in symbols.def, and cuGetExportTable, which has nothing to give.
#include <dlfcn.h>

#include <cstring>

#include "driver.h"

using namespace simcuda;

namespace {

// The exported names of functions whose first version has no suffix in the library.
constexpr const char* kFirstVersion = "_v1";

struct Row {
  const char* name;
  int since;
  const char* legacy;
  const char* per_thread;
};
constexpr Row kRows[] = {
#define SYMBOL(name, since, legacy, per_thread) {#name, since, #legacy, #per_thread},
#include "symbols.def"
#undef SYMBOL
};

// Function addresses come from the library's own export table, so that one name is never two things.
void* exported(const char* name) {
  static void* const self = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&kRows), &info);
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }();
  std::string wanted = name;
  const auto suffix = wanted.rfind(kFirstVersion);
  if (suffix != std::string::npos && suffix + std::strlen(kFirstVersion) == wanted.size()) {
    wanted.resize(suffix);
  }
  return self != nullptr ? dlsym(self, wanted.c_str()) : nullptr;
}

// A name that isn't there is no error, the pointer is null then. (The first version of the function had
// no status to tell why, and answers CUDA_ERROR_NOT_FOUND.)
CUresult look_up(const char* name, void** function, int version, cuuint64_t flags,
                 CUdriverProcAddressQueryResult* status) {
  constexpr cuuint64_t kKnown = CU_GET_PROC_ADDRESS_LEGACY_STREAM |
                                CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  if (name == nullptr || function == nullptr || (flags & ~kKnown) != 0 || flags == kKnown) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *function = nullptr;
  const Row* best = nullptr;
  bool known = false;
  for (const Row& row : kRows) {
    if (std::strcmp(row.name, name) != 0) continue;
    known = true;
    if (row.since <= version && (best == nullptr || row.since > best->since)) best = &row;
  }
  if (status != nullptr) {
    *status = best != nullptr ? CU_GET_PROC_ADDRESS_SUCCESS
              : known         ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                              : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  }
  if (best == nullptr) return CUDA_SUCCESS;
  const bool own = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
  *function = exported(own ? best->per_thread : best->legacy);
  return CUDA_SUCCESS;
}

}  // namespace

#undef cuGetProcAddress
SIM_EXPORT CUresult cuGetProcAddress(const char* name, void** function, int version,
                                     cuuint64_t flags) {
  const CUresult error = look_up(name, function, version, flags, nullptr);
  return error == CUDA_SUCCESS && *function == nullptr ? CUDA_ERROR_NOT_FOUND : error;
}

SIM_EXPORT CUresult cuGetProcAddress_v2(const char* name, void** function, int version,
                                        cuuint64_t flags, CUdriverProcAddressQueryResult* status) {
  return look_up(name, function, version, flags, status);
}

SIM_EXPORT CUresult cuGetExportTable(const void** table, const CUuuid*) {
  if (table == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}
