// SPDX-License-Identifier: Apache-2.0
#include "chips.h"

#include <array>
#include <cstdio>
#include <dlfcn.h>
#include <stdexcept>

#include "xpu/pages.h"
#include "xpu_ascend/dcmi.h"

namespace flexnpu {
namespace {

template <typename Function>
Function resolve(void* library, const char* name) {
    void* const found = dlsym(library, name);
    if (found == nullptr) throw std::runtime_error(std::string("libdcmi.so has no ") + name + "; install a newer driver");
    return reinterpret_cast<Function>(found);
}

void check(int code, const char* name) {
    if (code != 0)
        throw std::runtime_error(std::string(name) + " said " + std::to_string(code) + "; see whether npu-smi info works");
}

// Training chips have HBM, and tell no other memory; inference chips have none.
std::uint64_t memory_mb(void* library, int card, int device) {
    xpu_dcmi_hbm hbm{};
    const auto hbm_of = resolve<xpu_dcmi_get_device_hbm_info>(library, "dcmi_get_device_hbm_info");
    if (hbm_of(card, device, &hbm) == 0 && hbm.size_mb != 0) return hbm.size_mb;
    xpu_dcmi_memory memory{};
    const auto memory_of = resolve<xpu_dcmi_get_device_memory_info_v3>(library, "dcmi_get_device_memory_info_v3");
    check(memory_of(card, device, &memory), "dcmi_get_device_memory_info_v3");
    return memory.size_mb;
}

} // namespace

std::vector<Chip> find_chips(const std::string& dcmi_lib_file) {
    void* const library = dlopen(dcmi_lib_file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
        throw std::runtime_error("dcmi_lib_file: " + std::string(dlerror()) + "; name the driver's libdcmi.so");
    check(resolve<xpu_dcmi_init>(library, "dcmi_init")(), "dcmi_init");
    const auto die_of = resolve<xpu_dcmi_get_device_die_v2>(library, "dcmi_get_device_die_v2");
    const auto devices_of = resolve<xpu_dcmi_get_device_num_in_card>(library, "dcmi_get_device_num_in_card");
    std::array<int, 64> cards{};
    int count = 0;
    check(resolve<xpu_dcmi_get_card_list>(library, "dcmi_get_card_list")(&count, cards.data(), cards.size()),
          "dcmi_get_card_list");
    std::vector<Chip> chips;
    for (int i = 0; i < count; ++i) {
        const int card = cards.at(static_cast<std::size_t>(i));
        int devices = 0;
        check(devices_of(card, &devices), "dcmi_get_device_num_in_card");
        for (int device = 0; device < devices; ++device) {
            xpu_dcmi_die die{};
            check(die_of(card, device, XPU_DCMI_VDIE, &die), "dcmi_get_device_die_v2");
            char text[XPU_UUID_BYTES] = {};
            std::snprintf(text, sizeof text, XPU_DIE_FORMAT, die.word[0], die.word[1], die.word[2], die.word[3],
                          die.word[4]);
            chips.push_back({card, device, text, memory_mb(library, card, device)});
        }
    }
    return chips;
}

} // namespace flexnpu
