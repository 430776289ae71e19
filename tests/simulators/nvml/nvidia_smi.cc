// SPDX-License-Identifier: GPL-3.0-or-later
//
// nvidia-smi (simulated): the table, -L, and --query-gpu, asked through libnvidia-ml.so.1 like the real
// one, so that what stands before that library (an interposer) shows here too.
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sstream>
#include <string>
#include <vector>

#include <dlfcn.h>

namespace {

void* nvml_library() {
  static void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
  return library;
}

template <class Function>
Function* nvml(const char* name) {
  return reinterpret_cast<Function*>(dlsym(nvml_library(), name));
}
#define NVML(name) (*nvml<decltype(name)>(#name))

std::string text(nvmlReturn_t (*get)(nvmlDevice_t, char*, unsigned), nvmlDevice_t device) {
  char value[96] = {};
  return get(device, value, sizeof(value)) == NVML_SUCCESS ? value : "[N/A]";
}

struct Snapshot {
  nvmlDevice_t device;
  unsigned index, minor, temperature, milliwatts, limit_milliwatts;
  std::string name, uuid, serial, bus;
  nvmlMemory_t memory;
  nvmlUtilization_t busy;
  int major_capability, minor_capability;
};

Snapshot snapshot(unsigned index) {
  Snapshot s{};
  NVML(nvmlDeviceGetHandleByIndex_v2)(index, &s.device);
  s.index = index;
  s.name = text(nvml<decltype(nvmlDeviceGetName)>("nvmlDeviceGetName"), s.device);
  s.uuid = text(nvml<decltype(nvmlDeviceGetUUID)>("nvmlDeviceGetUUID"), s.device);
  s.serial = text(nvml<decltype(nvmlDeviceGetSerial)>("nvmlDeviceGetSerial"), s.device);
  nvmlPciInfo_t pci{};
  NVML(nvmlDeviceGetPciInfo_v3)(s.device, &pci);
  s.bus = pci.busId;
  NVML(nvmlDeviceGetMinorNumber)(s.device, &s.minor);
  NVML(nvmlDeviceGetMemoryInfo)(s.device, &s.memory);
  NVML(nvmlDeviceGetUtilizationRates)(s.device, &s.busy);
  NVML(nvmlDeviceGetTemperature)(s.device, NVML_TEMPERATURE_GPU, &s.temperature);
  NVML(nvmlDeviceGetPowerUsage)(s.device, &s.milliwatts);
  NVML(nvmlDeviceGetEnforcedPowerLimit)(s.device, &s.limit_milliwatts);
  NVML(nvmlDeviceGetCudaComputeCapability)(s.device, &s.major_capability, &s.minor_capability);
  return s;
}

std::string driver_version() {
  char version[80] = {};
  NVML(nvmlSystemGetDriverVersion)(version, sizeof(version));
  return version;
}

unsigned long long mib(unsigned long long bytes) { return bytes >> 20; }

bool in_mig_mode(const Snapshot& card) {
  unsigned current = 0, pending = 0;
  return NVML(nvmlDeviceGetMigMode)(card.device, &current, &pending) == NVML_SUCCESS && current != 0;
}

struct Field {
  const char* name;
  const char* unit;
  std::string (*value)(const Snapshot&);
};

std::string watts(unsigned milliwatts) {
  char out[32];
  std::snprintf(out, sizeof(out), "%.2f", milliwatts / 1000.0);
  return out;
}

const Field kFields[] = {
    {"index", "", [](const Snapshot& s) { return std::to_string(s.index); }},
    {"count", "", [](const Snapshot&) {
       unsigned count = 0;
       NVML(nvmlDeviceGetCount_v2)(&count);
       return std::to_string(count);
     }},
    {"name", "", [](const Snapshot& s) { return s.name; }},
    {"gpu_name", "", [](const Snapshot& s) { return s.name; }},
    {"uuid", "", [](const Snapshot& s) { return s.uuid; }},
    {"gpu_uuid", "", [](const Snapshot& s) { return s.uuid; }},
    {"serial", "", [](const Snapshot& s) { return s.serial; }},
    {"gpu_serial", "", [](const Snapshot& s) { return s.serial; }},
    {"pci.bus_id", "", [](const Snapshot& s) { return s.bus; }},
    {"gpu_bus_id", "", [](const Snapshot& s) { return s.bus; }},
    {"driver_version", "", [](const Snapshot&) { return driver_version(); }},
    {"compute_cap", "", [](const Snapshot& s) {
       return std::to_string(s.major_capability) + "." + std::to_string(s.minor_capability);
     }},
    {"memory.total", " MiB", [](const Snapshot& s) { return std::to_string(mib(s.memory.total)); }},
    {"memory.used", " MiB", [](const Snapshot& s) { return std::to_string(mib(s.memory.used)); }},
    {"memory.free", " MiB", [](const Snapshot& s) { return std::to_string(mib(s.memory.free)); }},
    {"utilization.gpu", " %", [](const Snapshot& s) { return std::to_string(s.busy.gpu); }},
    {"utilization.memory", " %", [](const Snapshot& s) { return std::to_string(s.busy.memory); }},
    {"temperature.gpu", "", [](const Snapshot& s) { return std::to_string(s.temperature); }},
    {"power.draw", " W", [](const Snapshot& s) { return watts(s.milliwatts); }},
    {"power.limit", " W", [](const Snapshot& s) { return watts(s.limit_milliwatts); }},
    {"persistence_mode", "", [](const Snapshot&) { return std::string("Enabled"); }},
    {"mig.mode.current", "", [](const Snapshot& s) { return std::string(in_mig_mode(s) ? "Enabled" : "[N/A]"); }},
};

const char* column_unit(const Field& field) {
  return *field.unit == '\0' ? "" : std::strcmp(field.unit, " %") == 0 ? " [%]"
         : std::strcmp(field.unit, " W") == 0                         ? " [W]"
                                                                      : " [MiB]";
}

int query(const std::vector<Snapshot>& cards, const std::string& wanted, bool header, bool units) {
  std::vector<const Field*> fields;
  std::istringstream names(wanted);
  std::string name;
  while (std::getline(names, name, ',')) {
    while (!name.empty() && name.front() == ' ') name.erase(0, 1);
    const Field* found = nullptr;
    for (const Field& field : kFields) {
      if (name == field.name) found = &field;
    }
    if (found == nullptr) {
      std::printf("Field \"%s\" is not a valid field to query.\n\n", name.c_str());
      return 2;
    }
    fields.push_back(found);
  }
  const auto line = [&](auto cell) {
    for (std::size_t i = 0; i < fields.size(); ++i) {
      std::printf("%s%s", i == 0 ? "" : ", ", cell(*fields[i]).c_str());
    }
    std::printf("\n");
  };
  if (header) {
    line([&](const Field& f) { return std::string(f.name) + (units ? column_unit(f) : ""); });
  }
  for (const Snapshot& card : cards) {
    line([&](const Field& f) { return f.value(card) + (units ? f.unit : ""); });
  }
  return 0;
}

void list_instances(const Snapshot& card) {
  unsigned most = 0;
  NVML(nvmlDeviceGetMaxMigDeviceCount)(card.device, &most);
  for (unsigned index = 0; in_mig_mode(card) && index < most; ++index) {
    nvmlDevice_t instance = nullptr;
    if (NVML(nvmlDeviceGetMigDeviceHandleByIndex)(card.device, index, &instance) != NVML_SUCCESS) continue;
    const std::string name = text(nvml<decltype(nvmlDeviceGetName)>("nvmlDeviceGetName"), instance);
    const auto size = name.rfind(" MIG ");
    std::printf("  MIG %-11s Device %2u: (UUID: %s)\n", size == std::string::npos ? "?" : name.substr(size + 5).c_str(), index,
                text(nvml<decltype(nvmlDeviceGetUUID)>("nvmlDeviceGetUUID"), instance).c_str());
  }
}

int list(const std::vector<Snapshot>& cards) {
  for (const Snapshot& card : cards) {
    std::printf("GPU %u: %s (UUID: %s)\n", card.index, card.name.c_str(), card.uuid.c_str());
    list_instances(card);
  }
  return 0;
}

void rule(char left, char fill) {
  std::printf("%c%s%c\n", left, std::string(89, fill).c_str(), left);
}

std::string command_of(unsigned pid) {
  char name[44] = {};
  const bool found = NVML(nvmlSystemGetProcessName)(pid, name, sizeof(name)) == NVML_SUCCESS;
  return found ? name : "[Not Found]";
}

int table(const std::vector<Snapshot>& cards) {
  int cuda = 0;
  NVML(nvmlSystemGetCudaDriverVersion)(&cuda);
  const std::time_t now = std::time(nullptr);
  char date[64];
  std::strftime(date, sizeof(date), "%a %b %e %H:%M:%S %Y", std::localtime(&now));
  std::printf("%s\n", date);
  std::printf("simulated: these cards exist only in tests\n");
  rule('+', '-');
  std::printf("| NVIDIA-SMI %-21s Driver Version: %-16s CUDA Version: %2d.%-4d |\n",
              driver_version().c_str(), driver_version().c_str(), cuda / 1000, cuda % 1000 / 10);
  rule('|', '=');
  std::printf("| %-40s | %-22s | %-19s |\n", "GPU  Name", "Bus-Id", "GPU-Util");
  std::printf("| %-40s | %-22s | %-19s |\n", "     Temp  Pwr:Usage/Cap", "Memory-Usage", "Compute M.");
  rule('|', '=');
  for (const Snapshot& c : cards) {
    char left[96];
    char middle[64];
    char right[32];
    std::snprintf(left, sizeof(left), "%3u  %s", c.index, c.name.c_str());
    std::snprintf(right, sizeof(right), "%u%%", c.busy.gpu);
    std::printf("| %-40s | %-22s | %19s |\n", left, c.bus.c_str(), right);
    std::snprintf(left, sizeof(left), "     %3uC  %uW / %uW", c.temperature, c.milliwatts / 1000,
                  c.limit_milliwatts / 1000);
    std::snprintf(middle, sizeof(middle), "%lluMiB / %lluMiB", mib(c.memory.used), mib(c.memory.total));
    std::printf("| %-40s | %22s | %19s |\n", left, middle, "Default");
    rule('+', '-');
  }
  std::printf("| %-87s |\n", "Processes:");
  std::printf("| %-87s |\n", " GPU        PID   Type   Process name                                GPU Memory");
  rule('|', '=');
  bool any = false;
  for (const Snapshot& card : cards) {
    unsigned count = 0;
    auto& get = NVML(nvmlDeviceGetComputeRunningProcesses_v3);
    get(card.device, &count, nullptr);
    std::vector<nvmlProcessInfo_t> infos(count + 8);
    count = static_cast<unsigned>(infos.size());
    if (get(card.device, &count, infos.data()) != NVML_SUCCESS) continue;
    for (unsigned i = 0; i < count; ++i) {
      char row[128];
      std::snprintf(row, sizeof(row), "%4u %10u      C   %-40s %9lluMiB", card.index, infos[i].pid,
                    command_of(infos[i].pid).c_str(), mib(infos[i].usedGpuMemory));
      std::printf("| %-87s |\n", row);
      any = true;
    }
  }
  if (!any) std::printf("| %-87s |\n", " No running processes found");
  rule('+', '-');
  return 0;
}

struct Request {
  bool list = false;
  std::string fields, id;
  bool csv = false, header = true, units = true;
};

bool parse(int count, char** words, Request& request) {
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "-L" || word == "--list-gpus") request.list = true;
    else if (word.rfind("--query-gpu=", 0) == 0) request.fields = word.substr(12);
    else if (word == "-i" && i + 1 < count) request.id = words[++i];
    else if (word.rfind("--id=", 0) == 0) request.id = word.substr(5);
    else if (word.rfind("--format=", 0) == 0) {
      request.csv = word.find("csv") != std::string::npos;
      request.header = word.find("noheader") == std::string::npos;
      request.units = word.find("nounits") == std::string::npos;
    } else {
      std::printf("Invalid combination of input arguments: '%s' is not known to the simulated nvidia-smi "
                  "(-L, -i ID, --query-gpu=FIELDS --format=csv[,noheader][,nounits]).\n", words[i]);
      return false;
    }
  }
  if (!request.fields.empty() && !request.csv) {
    std::printf("\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.\n\n");
    return false;
  }
  return true;
}

int complain(nvmlReturn_t error) {
  if (error == NVML_ERROR_LIB_RM_VERSION_MISMATCH) {
    std::printf("Failed to initialize NVML: Driver/library version mismatch\n");
    return 18;
  }
  std::printf("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
              "the latest NVIDIA driver is installed and running.\nsimulated: %s\n",
              NVML(nvmlErrorString)(error));
  return 9;
}

}  // namespace

int main(int count, char** words) {
  Request request;
  if (!parse(count, words, request)) return 2;
  if (nvml_library() == nullptr) {
    std::printf("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the "
                "NVIDIA Display Driver is properly installed and present in your system.\nsimulated: %s\n",
                dlerror());
    return 12;
  }
  if (const nvmlReturn_t error = NVML(nvmlInit_v2)()) return complain(error);
  unsigned cards = 0;
  NVML(nvmlDeviceGetCount_v2)(&cards);
  std::vector<Snapshot> chosen;
  for (unsigned i = 0; i < cards; ++i) {
    Snapshot card = snapshot(i);
    const bool wanted = request.id.empty() || request.id == std::to_string(i) || request.id == card.uuid ||
                        request.id == card.bus;
    if (wanted) chosen.push_back(card);
  }
  if (chosen.empty()) {
    std::printf("No devices were found\n");
    return 6;
  }
  if (request.list) return list(chosen);
  if (!request.fields.empty()) return query(chosen, request.fields, request.header, request.units);
  return table(chosen);
}
