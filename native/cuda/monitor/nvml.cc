// SPDX-License-Identifier: Apache-2.0
//
// NVML is optional: a slice's own figures come from the ledger, NVML's stand beside them.
#include "nvml.h"

#include <dlfcn.h>

namespace xpu::monitor {
namespace {

struct Utilisation {
    unsigned gpu, memory;
};
struct Memory {
    unsigned long long total, free, used;
};
using Device = struct NvmlDevice*;

struct Nvml {
    int (*init)() = nullptr;
    int (*by_uuid)(const char*, Device*) = nullptr;
    int (*utilisation)(Device, Utilisation*) = nullptr;
    int (*memory)(Device, Memory*) = nullptr;

    bool usable() const { return init != nullptr && by_uuid != nullptr && init() == 0; }
};

template <typename Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
}

Nvml open_nvml() {
    Nvml nvml;
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nvml;
    find(library, "nvmlInit_v2", nvml.init);
    find(library, "nvmlDeviceGetHandleByUUID", nvml.by_uuid);
    find(library, "nvmlDeviceGetUtilizationRates", nvml.utilisation);
    find(library, "nvmlDeviceGetMemoryInfo", nvml.memory);
    return nvml;
}

CardView view(const Nvml& nvml, const char* uuid) {
    CardView card;
    Device device = nullptr;
    if (nvml.by_uuid(uuid, &device) != 0) return card;
    Utilisation utilisation = {};
    if (nvml.utilisation != nullptr && nvml.utilisation(device, &utilisation) == 0) {
        card.known = true;
        card.utilisation_percent = utilisation.gpu;
    }
    Memory memory = {};
    if (nvml.memory != nullptr && nvml.memory(device, &memory) == 0) card.total_bytes = memory.total;
    return card;
}

} // namespace

std::vector<CardView> ask_nvml(const Config& config) {
    std::vector<CardView> cards(config.cards);
    const Nvml nvml = open_nvml();
    if (!nvml.usable()) return cards;
    for (unsigned index = 0; index < config.cards; ++index)
        cards[index] = view(nvml, config.card[index].uuid);
    return cards;
}

} // namespace xpu::monitor
