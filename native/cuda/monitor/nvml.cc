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

// In a slice libnvidia-ml.so.1 is ours and shows the slice; without one there is only the driver's.
void* open_library() {
    void* library = dlopen("libnvidia-ml-original.so", RTLD_NOW | RTLD_LOCAL);
    return library != nullptr ? library : dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
}

Nvml open_nvml() {
    Nvml nvml;
    void* library = open_library();
    if (library == nullptr) return nvml;
    find(library, "nvmlInit_v2", nvml.init);
    find(library, "nvmlDeviceGetHandleByUUID", nvml.by_uuid);
    find(library, "nvmlDeviceGetUtilizationRates", nvml.utilisation);
    find(library, "nvmlDeviceGetMemoryInfo", nvml.memory);
    return nvml;
}

const Nvml& nvml() {
    static const Nvml opened = open_nvml();
    return opened;
}

} // namespace

CardWatch::CardWatch(const Config& config) : cards_(config.cards) {
    if (!nvml().usable()) return;
    for (unsigned index = 0; index < config.cards; ++index) {
        Card& card = cards_[index];
        if (nvml().by_uuid(config.card[index].uuid, &card.device) != 0) card.device = nullptr;
        Memory memory = {};
        if (card.device != nullptr && nvml().memory != nullptr &&
            nvml().memory(card.device, &memory) == 0)
            card.total_bytes = memory.total;
    }
}

void CardWatch::sample() {
    if (nvml().utilisation == nullptr) return;
    for (Card& card : cards_) {
        Utilisation utilisation = {};
        if (card.device == nullptr || nvml().utilisation(card.device, &utilisation) != 0) continue;
        card.percent_sum += utilisation.gpu;
        ++card.samples;
    }
}

std::vector<CardView> CardWatch::views() const {
    std::vector<CardView> views;
    for (const Card& card : cards_) {
        CardView view;
        view.known = card.samples > 0;
        view.total_bytes = card.total_bytes;
        if (view.known)
            view.utilisation_percent =
                static_cast<unsigned>((card.percent_sum + card.samples / 2) / card.samples);
        views.push_back(view);
    }
    return views;
}

} // namespace xpu::monitor
