// SPDX-License-Identifier: GPL-3.0-or-later
//
// libnvidia-ml: what an observer sees of the cards.
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#pragma GCC visibility push(default)
#include <nvml.h>
#pragma GCC visibility pop

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "card.h"
#include "faults.h"
#include "hardware.h"
#include "session.h"
#include "vendor.h"
#include "wire.h"

#define SIM_EXPORT extern "C" __attribute__((visibility("default")))

// What a handle points to. Handles stay valid from one nvmlInit to the last nvmlShutdown.
struct nvmlDevice_st {
  sim::CardView card;
  sim::Settings profile;
  unsigned index;  // among the cards or, of a MIG instance, among those of its card
  std::size_t place;                // in the fleet
  nvmlDevice_st* whole;             // the card that a MIG instance is a part of; else null
  std::vector<nvmlDevice_st*> parts;  // the instances of a card in MIG mode that can be seen here

  bool divided() const { return card.info().parts > 0; }
};

struct nvmlEventSet_st {
  std::vector<nvmlDevice_t> devices;
  long told = 0;  // the XID that its owner has been told of
};

namespace {

class Library {
 public:
  nvmlReturn_t init() {
    const std::lock_guard<std::mutex> held(lock_);
    if (uses_ > 0) {
      ++uses_;
      return NVML_SUCCESS;
    }
    session_ = sim::Session::open(sim::socket_path(simnvidia::kSocket), sim::kObserver);
    if (!session_.ok()) {
      std::fprintf(stderr, "libnvidia-ml (simulated): %s\n", session_.error().c_str());
      return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    sim::Fleet& fleet = session_.fleet();
    const std::string own = simnvidia::library_version(reinterpret_cast<const void*>(&nvmlInit_v2));
    if (!own.empty() && own != fleet.driver_version) {
      session_.close();
      return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    }
    devices_.clear();
    cards_.clear();
    for (const std::size_t index : simnvidia::visible(fleet)) {
      const sim::CardView card(fleet, index, session_.ticket());
      nvmlDevice_st* const whole = whole_of(card.info());
      auto& siblings = whole == nullptr ? cards_ : whole->parts;
      devices_.push_back(std::make_unique<nvmlDevice_st>(
          nvmlDevice_st{card, sim::parse_settings(card.info().attributes, card.info().profile),
                        static_cast<unsigned>(siblings.size()), index, whole, {}}));
      siblings.push_back(devices_.back().get());
    }
    ++uses_;
    return NVML_SUCCESS;
  }

  nvmlReturn_t shutdown() {
    const std::lock_guard<std::mutex> held(lock_);
    if (uses_ == 0) return NVML_ERROR_UNINITIALIZED;
    if (--uses_ == 0) session_.close();
    return NVML_SUCCESS;
  }

  bool ready() const { return uses_ > 0; }
  // Instances too, which only their UUID and their card lead to.
  const std::vector<std::unique_ptr<nvmlDevice_st>>& devices() const { return devices_; }
  std::size_t cards() const { return cards_.size(); }
  const sim::Fleet& fleet() const { return session_.fleet(); }
  bool knows(nvmlDevice_t device) const {
    return std::any_of(devices_.begin(), devices_.end(),
                       [&](const auto& known) { return known.get() == device; });
  }

 private:
  nvmlDevice_st* whole_of(const sim::CardInfo& info) const {
    for (nvmlDevice_st* card : cards_) {
      if (info.part_of != sim::kWhole && card->place == static_cast<std::size_t>(info.part_of)) return card;
    }
    return nullptr;
  }

  std::mutex lock_;
  unsigned uses_ = 0;
  sim::Session session_;
  std::vector<std::unique_ptr<nvmlDevice_st>> devices_;
  std::vector<nvmlDevice_st*> cards_;
};

Library& library() {
  static Library* const only = new Library;
  return *only;
}

// Faults that a call about a card meets before it does anything.
nvmlReturn_t reached(nvmlDevice_t device) {
  const simnvidia::Faults faults = simnvidia::current_faults();
  if (!faults.sound) return NVML_ERROR_UNKNOWN;
  if (faults.delay_ms > 0) {
    const timespec pause{faults.delay_ms / 1000, faults.delay_ms % 1000 * 1'000'000};
    nanosleep(&pause, nullptr);
  }
  const bool lost = faults.lost_card == static_cast<long>(device->card.info().minor);
  return lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

nvmlReturn_t ready() { return library().ready() ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED; }

template <class... Out>
nvmlReturn_t ready(nvmlDevice_t device, Out*... out) {
  if (!library().ready()) return NVML_ERROR_UNINITIALIZED;
  const bool complete = (... && (out != nullptr));
  return complete && library().knows(device) ? reached(device) : NVML_ERROR_INVALID_ARGUMENT;
}

// What NVML knows of cards alone: an instance has no bus, no sensors, no clocks and no events of its own.
template <class... Out>
nvmlReturn_t ready_card(nvmlDevice_t device, Out*... out) {
  const nvmlReturn_t error = ready(device, out...);
  return error != NVML_SUCCESS ? error : device->whole != nullptr ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

// Of what runs it knows neither of an instance nor of a card divided into some.
template <class... Out>
nvmlReturn_t ready_to_sample(nvmlDevice_t device, Out*... out) {
  const nvmlReturn_t error = ready_card(device, out...);
  return error != NVML_SUCCESS ? error : device->divided() ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t put_text(char* to, unsigned size, const std::string& text) {
  if (to == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (size < text.size() + 1) return NVML_ERROR_INSUFFICIENT_SIZE;
  std::memcpy(to, text.c_str(), text.size() + 1);
  return NVML_SUCCESS;
}

std::string text_of(const nvmlDevice_st& device, const char* key) {
  const auto found = device.profile.find(key);
  return found == device.profile.end() ? "" : found->second;
}

unsigned number_of(const nvmlDevice_st& device, const char* key) {
  return static_cast<unsigned>(std::strtoul(text_of(device, key).c_str(), nullptr, 10));
}

template <class Predicate>
nvmlReturn_t find_device(nvmlDevice_t* out, Predicate matches) {
  if (const nvmlReturn_t error = ready()) return error;
  if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  for (const auto& device : library().devices()) {
    if (!matches(*device)) continue;
    *out = device.get();
    return NVML_SUCCESS;
  }
  return NVML_ERROR_NOT_FOUND;
}

struct PciPlace {
  unsigned domain, bus, device;
};

bool parse_pci(const char* text, PciPlace& place) {
  unsigned function = 0;
  if (std::sscanf(text, "%x:%x:%x.%x", &place.domain, &place.bus, &place.device, &function) == 4) {
    return true;
  }
  place.domain = 0;
  return std::sscanf(text, "%x:%x.%x", &place.bus, &place.device, &function) == 3;
}

PciPlace place_of(const nvmlDevice_st& device) {
  PciPlace place{};
  parse_pci(device.card.info().pci_address, place);
  return place;
}

sim::Nanos wall_offset() {
  timespec wall{};
  clock_gettime(CLOCK_REALTIME, &wall);
  return wall.tv_sec * 1'000'000'000LL + wall.tv_nsec - sim::monotonic_now();
}

// A process on a card, or on an instance of it.
struct Running {
  std::int32_t host_pid;
  std::uint64_t memory_bytes;
  unsigned gpu_instance, compute_instance;
};

constexpr unsigned kNoInstance = 0xffffffffu;

std::vector<Running> running(const nvmlDevice_st& device) {
  std::vector<Running> all;
  const bool instance = device.whole != nullptr;
  for (const auto& usage : device.card.usages()) {
    if (usage.memory_bytes == 0) continue;
    all.push_back({usage.host_pid, usage.memory_bytes, instance ? number_of(device, "mig_gpu_instance") : kNoInstance,
                   instance ? 0 : kNoInstance});
  }
  for (const nvmlDevice_st* part : device.parts) {
    const auto inside = running(*part);
    all.insert(all.end(), inside.begin(), inside.end());
  }
  return all;
}

std::uint64_t used_bytes(const nvmlDevice_st& device) {
  std::uint64_t used = device.card.used_bytes();
  for (const nvmlDevice_st* part : device.parts) used += part->card.used_bytes();
  return used;
}

// The protocol of NVML's lists: too small a buffer is an error that says how much is needed.
template <class Info, class Fill>
nvmlReturn_t list_processes(nvmlDevice_t device, unsigned* count, Info* infos, Fill fill) {
  if (const nvmlReturn_t error = ready(device, count)) return error;
  const auto all = running(*device);
  const unsigned room = *count;
  *count = static_cast<unsigned>(all.size());
  if (all.size() > room) return NVML_ERROR_INSUFFICIENT_SIZE;
  if (infos == nullptr && !all.empty()) return NVML_ERROR_INVALID_ARGUMENT;
  for (std::size_t i = 0; i < all.size(); ++i) {
    infos[i].pid = static_cast<unsigned>(all[i].host_pid);
    infos[i].usedGpuMemory = all[i].memory_bytes;
    fill(infos[i], all[i]);
  }
  return NVML_SUCCESS;
}

nvmlReturn_t no_processes(nvmlDevice_t device, unsigned* count) {
  if (const nvmlReturn_t error = ready(device, count)) return error;
  *count = 0;
  return NVML_SUCCESS;
}

void without_instance(nvmlProcessInfo_v1_t&, const Running&) {}
template <class Info>
void with_instance(Info& info, const Running& one) {
  info.gpuInstanceId = one.gpu_instance;
  info.computeInstanceId = one.compute_instance;
}

nvmlReturn_t give(nvmlDevice_t device, unsigned* out, unsigned value) {
  if (const nvmlReturn_t error = ready(device, out)) return error;
  *out = value;
  return NVML_SUCCESS;
}

nvmlReturn_t unsupported(nvmlDevice_t device) {
  const nvmlReturn_t error = ready(device);
  return error != NVML_SUCCESS ? error : NVML_ERROR_NOT_SUPPORTED;
}

unsigned busy_percent(const nvmlDevice_st& device) {
  device.card.settle();
  return device.card.utilisation_percent(sim::monotonic_now());
}

}  // namespace

// --- the library and the system ---------------------------------------------------------------

SIM_EXPORT nvmlReturn_t nvmlInit_v2(void) { return library().init(); }
SIM_EXPORT nvmlReturn_t nvmlInit(void) { return library().init(); }
SIM_EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned) { return library().init(); }
SIM_EXPORT nvmlReturn_t nvmlShutdown(void) { return library().shutdown(); }

SIM_EXPORT const char* nvmlErrorString(nvmlReturn_t code) {
  switch (code) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
  }
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char* version, unsigned size) {
  if (const nvmlReturn_t error = ready()) return error;
  return put_text(version, size, library().fleet().driver_version);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char* version, unsigned size) {
  if (const nvmlReturn_t error = ready()) return error;
  const std::string driver = library().fleet().driver_version;
  const int cuda = simnvidia::cuda_version(driver);
  return put_text(version, size, std::to_string(cuda / 1000) + "." + driver);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int* version) {
  if (const nvmlReturn_t error = ready()) return error;
  if (version == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *version = simnvidia::cuda_version(library().fleet().driver_version);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int* version) {
  return nvmlSystemGetCudaDriverVersion(version);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char* name, unsigned size) {
  if (const nvmlReturn_t error = ready()) return error;
  std::ifstream stream("/proc/" + std::to_string(pid) + "/cmdline");
  std::string command;
  std::getline(stream, command, '\0');
  if (command.empty()) return NVML_ERROR_NOT_FOUND;
  return put_text(name, size, command.substr(0, size > 0 ? size - 1 : 0));
}

// --- which device -----------------------------------------------------------------------------

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned* count) {
  if (const nvmlReturn_t error = ready()) return error;
  if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *count = static_cast<unsigned>(library().cards());
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned* count) { return nvmlDeviceGetCount_v2(count); }

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t* device) {
  const nvmlReturn_t error = find_device(device, [&](const auto& d) { return d.whole == nullptr && d.index == index; });
  return error == NVML_ERROR_NOT_FOUND ? NVML_ERROR_INVALID_ARGUMENT : error;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t* device) {
  return nvmlDeviceGetHandleByIndex_v2(index, device);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device) {
  if (uuid == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  return find_device(device, [&](const auto& d) { return std::strcmp(d.card.info().uuid, uuid) == 0; });
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char* serial, nvmlDevice_t* device) {
  if (serial == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  return find_device(device,
                     [&](const auto& d) { return std::strcmp(d.card.info().serial, serial) == 0; });
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* address, nvmlDevice_t* device) {
  PciPlace wanted{};
  if (address == nullptr || !parse_pci(address, wanted)) return NVML_ERROR_INVALID_ARGUMENT;
  return find_device(device, [&](const auto& d) {
    const PciPlace place = place_of(d);
    return d.whole == nullptr && place.domain == wanted.domain && place.bus == wanted.bus && place.device == wanted.device;
  });
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* address, nvmlDevice_t* device) {
  return nvmlDeviceGetHandleByPciBusId_v2(address, device);
}

// --- what it is -------------------------------------------------------------------------------

SIM_EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned* index) {
  if (const nvmlReturn_t error = ready(device, index)) return error;
  *index = device->index;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char* name, unsigned size) {
  if (const nvmlReturn_t error = ready(device, name)) return error;
  return put_text(name, size, device->card.info().name);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char* uuid, unsigned size) {
  if (const nvmlReturn_t error = ready(device, uuid)) return error;
  return put_text(uuid, size, device->card.info().uuid);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char* serial, unsigned size) {
  if (const nvmlReturn_t error = ready(device, serial)) return error;
  return put_text(serial, size, device->card.info().serial);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned* minor) {
  if (const nvmlReturn_t error = ready_card(device, minor)) return error;
  *minor = device->card.info().minor;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t* brand) {
  if (const nvmlReturn_t error = ready(device, brand)) return error;
  const std::string name = text_of(*device, "brand");
  *brand = name == "tesla"     ? NVML_BRAND_TESLA
           : name == "nvidia"  ? NVML_BRAND_NVIDIA
           : name == "geforce" ? NVML_BRAND_GEFORCE
                               : NVML_BRAND_UNKNOWN;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t* arch) {
  if (const nvmlReturn_t error = ready(device, arch)) return error;
  const std::string name = text_of(*device, "architecture");
  *arch = name == "turing"   ? NVML_DEVICE_ARCH_TURING
          : name == "ampere" ? NVML_DEVICE_ARCH_AMPERE
          : name == "ada"    ? NVML_DEVICE_ARCH_ADA
          : name == "hopper" ? NVML_DEVICE_ARCH_HOPPER
                             : NVML_DEVICE_ARCH_UNKNOWN;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int* major, int* minor) {
  if (const nvmlReturn_t error = ready(device, major, minor)) return error;
  const int found = std::sscanf(text_of(*device, "compute_capability").c_str(), "%d.%d", major, minor);
  return found == 2 ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  if (const nvmlReturn_t error = ready_card(device, pci)) return error;
  const PciPlace place = place_of(*device);
  std::memset(pci, 0, sizeof(*pci));
  pci->domain = place.domain;
  pci->bus = place.bus;
  pci->device = place.device;
  std::snprintf(pci->busIdLegacy, sizeof(pci->busIdLegacy), "%04X:%02X:%02X.0", place.domain & 0xffffu,
                place.bus & 0xffu, place.device & 0xffu);
  std::snprintf(pci->busId, sizeof(pci->busId), "%08X:%02X:%02X.0", place.domain, place.bus & 0xffu,
                place.device & 0xffu);
  const auto id = static_cast<unsigned>(std::strtoul(text_of(*device, "pci_device").c_str(), nullptr, 16));
  pci->pciDeviceId = id << 16 | 0x10de;
  pci->pciSubSystemId = pci->pciDeviceId;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  return nvmlDeviceGetPciInfo_v3(device, pci);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  return nvmlDeviceGetPciInfo_v3(device, pci);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned* cores) {
  return give(device, cores, library().knows(device) ? number_of(*device, "multiprocessors") * 64 : 0);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned* bits) {
  return give(device, bits, library().knows(device) ? number_of(*device, "memory_bus_bits") : 0);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned* node) {
  if (const nvmlReturn_t error = ready(device, node)) return error;
  if (device->card.info().numa_node < 0) return NVML_ERROR_NOT_SUPPORTED;
  *node = static_cast<unsigned>(device->card.info().numa_node);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other,
                                                            nvmlGpuTopologyLevel_t* level) {
  if (const nvmlReturn_t error = ready_card(one, level)) return error;
  if (const nvmlReturn_t error = ready_card(other)) return error;
  const bool same_node = one->card.info().numa_node == other->card.info().numa_node;
  *level = one == other ? NVML_TOPOLOGY_INTERNAL : same_node ? NVML_TOPOLOGY_NODE : NVML_TOPOLOGY_SYSTEM;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned, nvmlEnableState_t*) {
  return unsupported(device);
}

// --- modes ------------------------------------------------------------------------------------

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t* mode) {
  if (const nvmlReturn_t error = ready(device, mode)) return error;
  *mode = NVML_FEATURE_ENABLED;  // the daemon that keeps the cards is running, or we would not be here
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t* mode) {
  if (const nvmlReturn_t error = ready(device, mode)) return error;
  *mode = NVML_COMPUTEMODE_DEFAULT;
  return NVML_SUCCESS;
}

// A profile that isn't divided is of a card that has no such mode, as far as this library says.
SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned* current, unsigned* pending) {
  if (const nvmlReturn_t error = ready_card(device, current, pending)) return error;
  if (!device->divided()) return NVML_ERROR_NOT_SUPPORTED;
  *current = *pending = NVML_DEVICE_MIG_ENABLE;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned* count) {
  constexpr unsigned kMost = 7;  // of an A100
  return give(device, count, library().knows(device) && device->divided() ? kMost : 0);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned* is) {
  return give(device, is, library().knows(device) && device->whole != nullptr);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t* found) {
  if (const nvmlReturn_t error = ready_card(device, found)) return error;
  if (!device->divided()) return NVML_ERROR_NOT_SUPPORTED;
  if (index >= device->parts.size()) return NVML_ERROR_NOT_FOUND;
  *found = device->parts[index];
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t* whole) {
  if (const nvmlReturn_t error = ready(device, whole)) return error;
  if (device->whole == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *whole = device->whole;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned* id) {
  if (const nvmlReturn_t error = ready(device, id)) return error;
  if (device->whole == nullptr) return NVML_ERROR_NOT_SUPPORTED;
  *id = number_of(*device, "mig_gpu_instance");
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned* id) {
  if (const nvmlReturn_t error = ready(device, id)) return error;
  if (device->whole == nullptr) return NVML_ERROR_NOT_SUPPORTED;
  *id = 0;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t* attributes) {
  if (const nvmlReturn_t error = ready(device, attributes)) return error;
  if (device->whole == nullptr) return NVML_ERROR_NOT_SUPPORTED;
  *attributes = {};
  attributes->multiprocessorCount = number_of(*device, "multiprocessors");
  attributes->gpuInstanceSliceCount = attributes->computeInstanceSliceCount = number_of(*device, "mig_slices");
  attributes->memorySizeMB = device->card.info().memory_bytes >> 20;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t* attributes) {
  return nvmlDeviceGetAttributes_v2(device, attributes);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device,
                                                        nvmlGpuVirtualizationMode_t* mode) {
  if (const nvmlReturn_t error = ready(device, mode)) return error;
  *mode = NVML_GPU_VIRTUALIZATION_MODE_NONE;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t* current,
                                             nvmlEnableState_t* pending) {
  if (const nvmlReturn_t error = ready(device, current, pending)) return error;
  *current = *pending = NVML_FEATURE_ENABLED;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t* mode) {
  if (const nvmlReturn_t error = ready(device, mode)) return error;
  *mode = NVML_FEATURE_DISABLED;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t* active) {
  return nvmlDeviceGetDisplayMode(device, active);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t* state) {
  if (const nvmlReturn_t error = ready(device, state)) return error;
  *state = NVML_PSTATE_0;
  return NVML_SUCCESS;
}

// --- how it is doing --------------------------------------------------------------------------

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory) {
  if (const nvmlReturn_t error = ready(device, memory)) return error;
  const sim::CardInfo& info = device->card.info();
  memory->total = info.memory_bytes;
  memory->used = info.reserved_bytes + used_bytes(*device);
  memory->free = memory->total - memory->used;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* memory) {
  if (const nvmlReturn_t error = ready(device, memory)) return error;
  if (memory->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  const sim::CardInfo& info = device->card.info();
  memory->total = info.memory_bytes;
  memory->reserved = info.reserved_bytes;
  memory->used = used_bytes(*device);
  memory->free = memory->total - memory->reserved - memory->used;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* rates) {
  if (const nvmlReturn_t error = ready_to_sample(device, rates)) return error;
  rates->gpu = busy_percent(*device);
  rates->memory = 0;
  return NVML_SUCCESS;
}

// The newest complete window of each process that was busy after `last_seen`; times are wall-clock
// microseconds, as the real library's.
SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                                        nvmlProcessUtilizationSample_t* samples,
                                                        unsigned* count, unsigned long long last_seen) {
  if (const nvmlReturn_t error = ready_to_sample(device, count)) return error;
  device->card.settle();
  const sim::Nanos now = sim::monotonic_now();
  const simnvidia::Faults faults = simnvidia::current_faults();
  const sim::Nanos offset = wall_offset() + faults.time_jump_ms * 1'000'000;
  // Half a window of slack keeps rounding and clock slew from showing a window twice.
  const sim::Nanos since = last_seen == 0 ? 0
                                          : static_cast<sim::Nanos>(last_seen) * 1000 - offset +
                                                sim::kSampleNs / 2;
  std::vector<nvmlProcessUtilizationSample_t> found;
  for (const auto& usage : device->card.usages()) {
    auto windows = device->card.windows(usage.seat, since, now);
    windows.erase(std::remove_if(windows.begin(), windows.end(),
                                 [&](const auto& one) { return faults.misses(one.end_ns / sim::kSampleNs); }),
                  windows.end());
    if (windows.empty()) continue;
    nvmlProcessUtilizationSample_t sample{};
    sample.pid = static_cast<unsigned>(usage.host_pid);
    sample.timeStamp = static_cast<unsigned long long>((windows.back().end_ns + offset) / 1000);
    sample.smUtil = faults.biased(static_cast<unsigned>(windows.back().busy_ns * 100 / sim::kSampleNs));
    found.push_back(sample);
  }
  if (found.empty()) return NVML_ERROR_NOT_FOUND;
  const unsigned room = *count;
  *count = static_cast<unsigned>(found.size());
  if (samples == nullptr || found.size() > room) return NVML_ERROR_INSUFFICIENT_SIZE;
  std::copy(found.begin(), found.end(), samples);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned* count,
                                                                nvmlProcessInfo_t* infos) {
  return list_processes(device, count, infos, with_instance<nvmlProcessInfo_t>);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned* count,
                                                                nvmlProcessInfo_v2_t* infos) {
  return list_processes(device, count, infos, with_instance<nvmlProcessInfo_v2_t>);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned* count,
                                                             nvmlProcessInfo_v1_t* infos) {
  return list_processes(device, count, infos, without_instance);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned* count,
                                                                 nvmlProcessInfo_t*) {
  return no_processes(device, count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned* count,
                                                                 nvmlProcessInfo_v2_t*) {
  return no_processes(device, count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned* count,
                                                              nvmlProcessInfo_v1_t*) {
  return no_processes(device, count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned* count,
                                                                   nvmlProcessInfo_t*) {
  return no_processes(device, count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t,
                                                 unsigned* degrees) {
  if (const nvmlReturn_t error = ready_card(device, degrees)) return error;
  *degrees = 30 + busy_percent(*device) * 40 / 100;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned* milliwatts) {
  if (const nvmlReturn_t error = ready_card(device, milliwatts)) return error;
  const unsigned limit = number_of(*device, "power_watts") * 1000;
  *milliwatts = limit / 7 + (limit - limit / 7) * busy_percent(*device) / 100;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned* milliwatts) {
  return give(device, milliwatts, library().knows(device) ? number_of(*device, "power_watts") * 1000 : 0);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned* milliwatts) {
  return nvmlDeviceGetEnforcedPowerLimit(device, milliwatts);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned*) { return unsupported(device); }

SIM_EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t which, unsigned* mhz) {
  const char* key = which == NVML_CLOCK_MEM ? "memory_clock_mhz" : "clock_mhz";
  return give(device, mhz, library().knows(device) ? number_of(*device, key) : 0);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t which,
                                                  unsigned* mhz) {
  return nvmlDeviceGetClockInfo(device, which, mhz);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t,
                                                    nvmlEccCounterType_t, unsigned long long* count) {
  if (const nvmlReturn_t error = ready(device, count)) return error;
  *count = 0;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAccountingMode(nvmlDevice_t device, nvmlEnableState_t* mode) {
  return nvmlDeviceGetDisplayMode(device, mode);
}

// --- events: those that a fault makes happen --------------------------------------------------

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long* types) {
  if (const nvmlReturn_t error = ready(device, types)) return error;
  *types = nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError | nvmlEventTypeSingleBitEccError;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t* set) {
  if (const nvmlReturn_t error = ready()) return error;
  if (set == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *set = new nvmlEventSet_st;
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long,
                                                 nvmlEventSet_t set) {
  if (const nvmlReturn_t error = ready_card(device, set)) return error;
  set->devices.push_back(device);
  return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t* event, unsigned timeout_ms) {
  if (const nvmlReturn_t error = ready()) return error;
  if (set == nullptr || event == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  const simnvidia::Faults faults = simnvidia::current_faults();
  if (faults.xid != 0 && !set->devices.empty() && set->told != faults.xid) {
    set->told = faults.xid;
    *event = {};
    event->device = set->devices.front();
    event->eventType = nvmlEventTypeXidCriticalError;
    event->eventData = static_cast<unsigned long long>(faults.xid);
    event->gpuInstanceId = event->computeInstanceId = 0xffffffffu;
    return NVML_SUCCESS;
  }
  const timespec pause{timeout_ms / 1000, static_cast<long>(timeout_ms % 1000) * 1'000'000};
  nanosleep(&pause, nullptr);
  return NVML_ERROR_TIMEOUT;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t* event, unsigned timeout_ms) {
  return nvmlEventSetWait_v2(set, event, timeout_ms);
}

SIM_EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
  if (const nvmlReturn_t error = ready()) return error;
  delete set;
  return NVML_SUCCESS;
}
