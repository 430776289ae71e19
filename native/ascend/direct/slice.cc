// SPDX-License-Identifier: Apache-2.0
#include "slice.h"

#include <cstdio>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <mutex>
#include <new>
#include <pthread.h>

#include "real.h"
#include "xpu/log.h"
#include "xpu/place.h"
#include "xpu_ascend/dcmi.h"

namespace ascend {
namespace {

std::mutex opening;
std::atomic<Slice*> opened{nullptr};
std::atomic<bool> unlimited{false};

constexpr const char* kDcmi[] = {"libdcmi.so", "/usr/local/dcmi/libdcmi.so",
                                 "/usr/local/Ascend/driver/lib64/driver/libdcmi.so"};

void* dcmi() noexcept {
    for (const char* path : kDcmi)
        if (void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL)) return library;
    return nullptr;
}

// The die id of a device of this process; false where the driver doesn't tell.
bool die_of(std::int32_t device, char (&text)[XPU_UUID_BYTES]) noexcept {
    const auto physical_of = XPU_REAL("rtGetDevicePhyIdByIndex", rtError (*)(std::uint32_t, std::uint32_t*));
    void* const library = dcmi();
    if (physical_of == nullptr || library == nullptr) return false;
    const auto init = reinterpret_cast<xpu_dcmi_init>(dlsym(library, "dcmi_init"));
    const auto logical_of = reinterpret_cast<xpu_dcmi_get_device_logicid_from_phyid>(
        dlsym(library, "dcmi_get_device_logicid_from_phyid"));
    const auto card_of = reinterpret_cast<xpu_dcmi_get_card_id_device_id_from_logicid>(
        dlsym(library, "dcmi_get_card_id_device_id_from_logicid"));
    const auto die = reinterpret_cast<xpu_dcmi_get_device_die_v2>(dlsym(library, "dcmi_get_device_die_v2"));
    if (init == nullptr || logical_of == nullptr || card_of == nullptr || die == nullptr) return false;
    std::uint32_t physical = 0;
    unsigned logical = 0;
    int card = 0, chip = 0;
    xpu_dcmi_die id{};
    if (init() != 0 || physical_of(static_cast<std::uint32_t>(device), &physical) != kNone ||
        logical_of(physical, &logical) != 0 || card_of(&card, &chip, logical) != 0 ||
        die(card, chip, XPU_DCMI_VDIE, &id) != 0)
        return false;
    std::snprintf(text, sizeof text, XPU_DIE_FORMAT, id.word[0], id.word[1], id.word[2], id.word[3], id.word[4]);
    return true;
}

xpu::Nanos monotonic_now() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

} // namespace

// The child has threads, locks and slots of none; what it does with an NPU begins anew. The old one is left:
// its locks may be held by threads that do not exist here.
void Slice::forget() noexcept {
    opened.store(nullptr);
    unlimited.store(false);
    new (&opening) std::mutex;
}

Slice* Slice::open() noexcept {
    const xpu::Mapping config = xpu::map_config(xpu::config_page_path());
    if (config.state != xpu::PageState::kGood) {
        XPU_LOG_ONCE("%s %s: no limits", xpu::config_page_path(), xpu::describe(config.state));
        return nullptr;
    }
    auto* const made = new (std::nothrow) Slice;
    if (made == nullptr) return nullptr;
    made->page_ = static_cast<const xpu_config_page*>(config.base);
    if (const auto state = xpu::await_config(*made->page_, made->config_); state != xpu::PageState::kGood) {
        XPU_LOG_ONCE("%s %s: no limits", xpu::config_page_path(), xpu::describe(state));
        delete made;
        return nullptr;
    }
    made->ledger_.attach(xpu::map_ledger(xpu::ledger_page_path(), true), xpu::ledger_page_path());
    made->ledger_.join(monotonic_now());
    made->pages_ = open_pages(xpu::config_page_path(), xpu::ledger_page_path());
    static const int once = pthread_atfork(nullptr, nullptr, Slice::forget);
    (void)once;
    return made;
}

Slice* Slice::get() noexcept {
    if (Slice* const there = opened.load(std::memory_order_acquire)) return there;
    if (unlimited.load(std::memory_order_acquire)) return nullptr;
    const std::lock_guard<std::mutex> hold(opening);
    if (opened.load() == nullptr && !unlimited.load()) {
        Slice* const made = open();
        unlimited.store(made == nullptr);
        opened.store(made, std::memory_order_release);
    }
    return opened.load();
}

int Slice::card_of(std::int32_t device) noexcept {
    if (device < 0 || device >= kDevices) return -1;
    std::atomic<int>& known = cards_[device];
    if (const int found = known.load(std::memory_order_acquire)) return found - 2;
    int card = -1;
    char die[XPU_UUID_BYTES] = {};
    if (die_of(device, die)) {
        for (unsigned index = 0; index < config_.cards; ++index)
            if (std::strcmp(config_.card[index].uuid, die) == 0) card = static_cast<int>(index);
        if (card < 0) XPU_LOG_ONCE("device %d is chip %s, of which nothing is granted here: no limits", device, die);
    } else {
        XPU_LOG_ONCE("DCMI does not tell which chip device %d is: no limits", device);
    }
    known.store(card + 2, std::memory_order_release);
    return card;
}

int Slice::current_card() noexcept {
    const auto device_now = XPU_REAL("rtGetDevice", rtError (*)(std::int32_t*));
    std::int32_t device = -1;
    if (device_now == nullptr || device_now(&device) != kNone) return -1;
    return card_of(device);
}

std::uint64_t Slice::quota(unsigned card) noexcept {
    xpu::Config now;
    // While it is being written what was granted before holds.
    if (xpu::read_config(*page_, now) == xpu::PageState::kGood && card < now.cards) return now.card[card].memory_bytes;
    return config_.card[card].memory_bytes;
}

Gate* Slice::gate(unsigned card) noexcept {
    if (pages_.grants == nullptr || card >= pages_.grants->cards) return nullptr;
    if (Gate* const there = gates_[card].load(std::memory_order_acquire)) return there;
    const std::lock_guard<std::mutex> hold(opening);
    if (gates_[card].load() == nullptr) {
        auto* const made = new (std::nothrow) Gate(pages_, card);
        if (made == nullptr) return nullptr;
        made->start(); // before anybody else sees it: a gate without its thread holds nothing back
        gates_[card].store(made, std::memory_order_release);
    }
    return gates_[card].load();
}

} // namespace ascend
