// SPDX-License-Identifier: GPL-3.0-or-later
//
// libdcmi (simulated): what an observer sees of an Ascend node's chips. One chip a card.
#pragma GCC visibility push(default)
#include "dcmi_interface_api.h"
#pragma GCC visibility pop

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "ascend.h"
#include "card.h"
#include "chips.h"
#include "session.h"
#include "vnpu.h"
#include "wire.h"

#define SIM_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Chip {
  sim::CardView card;
  sim::Settings profile;
  unsigned logic;  // its number among the visible ones

  unsigned number() const { return card.info().minor; }
  unsigned long long mib(std::uint64_t bytes) const { return bytes >> 20; }
  bool has_hbm() const { return profile.at("memory_kind") == "hbm"; }
  unsigned setting(const char* key) const {
    return static_cast<unsigned>(sim::number(profile, key, card.info().profile));
  }
};

class Library {
 public:
  // Idempotent, as the real one; a library that could not start may be asked again.
  int init() {
    const std::lock_guard<std::mutex> held(lock_);
    if (session_.ok()) return DCMI_OK;
    session_ = sim::Session::open(simascend::socket_path(), sim::kObserver);
    if (!session_.ok()) {
      std::fprintf(stderr, "libdcmi (simulated): %s\n", session_.error().c_str());
      return DCMI_ERR_CODE_INNER_ERR;
    }
    chips_.clear();
    sim::Fleet& fleet = session_.fleet();
    for (const std::size_t index : simascend::visible(fleet)) {
      const sim::CardView card(fleet, index, session_.ticket());
      chips_.push_back(std::make_unique<Chip>(
          Chip{card, simascend::profile_of(card.info()), static_cast<unsigned>(chips_.size())}));
    }
    return DCMI_OK;
  }

  bool ready() const { return session_.ok(); }
  const std::vector<std::unique_ptr<Chip>>& chips() const { return chips_; }
  const char* version() const { return session_.fleet().driver_version; }

  const Chip* find(int card_id) const {
    for (const auto& chip : chips_) {
      if (static_cast<int>(chip->number()) == card_id) return chip.get();
    }
    return nullptr;
  }

 private:
  std::mutex lock_;
  sim::Session session_;
  std::vector<std::unique_ptr<Chip>> chips_;
};

Library& library() {
  static Library* const only = new Library;
  return *only;
}

constexpr int kNpuDevice = 0;

// Runs `body(chip)` for the chip that the numbers name; nothing throws out of the library.
template <class Body, class... Out>
int about(int card_id, int device_id, Body body, Out*... out) noexcept {
  try {
    if (!library().ready()) return DCMI_ERR_CODE_NOT_REDAY;
    if (!(... && (out != nullptr))) return DCMI_ERR_CODE_INVALID_PARAMETER;
    const Chip* chip = library().find(card_id);
    if (chip == nullptr) return DCMI_ERR_CODE_DEVICE_NOT_EXIST;
    if (device_id != kNpuDevice) return DCMI_ERR_CODE_INVALID_DEVICE_ID;
    return body(*chip);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "libdcmi (simulated): %s\n", error.what());
    return DCMI_ERR_CODE_INNER_ERR;
  }
}

template <std::size_t size>
void put(unsigned char (&field)[size], const std::string& text) {
  std::memset(field, 0, size);
  std::memcpy(field, text.c_str(), std::min(size - 1, text.size()));
}

int put_text(char* to, unsigned len, const std::string& text) {
  if (!library().ready()) return DCMI_ERR_CODE_NOT_REDAY;
  if (to == nullptr || len <= text.size()) return DCMI_ERR_CODE_INVALID_PARAMETER;
  std::memcpy(to, text.c_str(), text.size() + 1);
  return DCMI_OK;
}

template <class Info>
void describe(const Chip& chip, Info& info) {
  put(info.chip_type, "Ascend");
  put(info.chip_name, chip.card.info().name);
  put(info.chip_ver, "V1");
  info.aicore_cnt = chip.setting("aicore");
}

unsigned long long used_mib(const Chip& chip) {
  return chip.mib(chip.card.used_bytes() + chip.card.info().reserved_bytes);
}

unsigned memory_percent(const Chip& chip) {
  return static_cast<unsigned>(used_mib(chip) * 100 / chip.mib(chip.card.info().memory_bytes));
}

std::vector<sim::CardView::Usage> running(const Chip& chip) {
  auto all = chip.card.usages();
  all.erase(std::remove_if(all.begin(), all.end(), [](const auto& one) { return one.memory_bytes == 0; }),
            all.end());
  return all;
}

std::string vnpu_file() { return simascend::state_directory() + "/vnpu"; }

}  // namespace

const sim::Settings& simascend::profile_of_card(int card_id) {
  const Chip* chip = library().find(card_id);
  if (chip == nullptr) throw std::runtime_error("no card " + std::to_string(card_id));
  return chip->profile;
}

SIM_EXPORT int dcmi_init(void) {
  try {
    return library().init();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "libdcmi (simulated): %s\n", error.what());
    return DCMI_ERR_CODE_INNER_ERR;
  }
}

SIM_EXPORT int dcmi_get_dcmi_version(char* to, unsigned len) {
  return library().ready() ? put_text(to, len, library().version()) : DCMI_ERR_CODE_NOT_REDAY;
}

SIM_EXPORT int dcmi_get_driver_version(char* to, unsigned len) { return dcmi_get_dcmi_version(to, len); }

SIM_EXPORT int dcmi_get_card_list(int* card_num, int* card_list, int list_len) {
  if (!library().ready()) return DCMI_ERR_CODE_NOT_REDAY;
  const auto& chips = library().chips();
  if (card_num == nullptr || card_list == nullptr || list_len < static_cast<int>(chips.size())) {
    return DCMI_ERR_CODE_INVALID_PARAMETER;
  }
  *card_num = static_cast<int>(chips.size());
  for (const auto& chip : chips) card_list[chip->logic] = static_cast<int>(chip->number());
  return DCMI_OK;
}

SIM_EXPORT int dcmi_get_device_num_in_card(int card_id, int* device_num) {
  return about(card_id, kNpuDevice, [&](const Chip&) { return *device_num = 1, DCMI_OK; }, device_num);
}

SIM_EXPORT int dcmi_get_device_id_in_card(int card_id, int* device_id_max, int* mcu_id, int* cpu_id) {
  return about(
      card_id, kNpuDevice,
      [&](const Chip& chip) {
        *device_id_max = 1;
        *mcu_id = chip.setting("mcu") != 0 ? 1 : -1;
        *cpu_id = -1;
        return DCMI_OK;
      },
      device_id_max, mcu_id, cpu_id);
}

SIM_EXPORT int dcmi_get_device_type(int card_id, int device_id, enum dcmi_unit_type* device_type) {
  return about(card_id, device_id, [&](const Chip&) { return *device_type = NPU_TYPE, DCMI_OK; }, device_type);
}

SIM_EXPORT int dcmi_get_device_logic_id(int* device_logic_id, int card_id, int device_id) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) { return *device_logic_id = static_cast<int>(chip.logic), DCMI_OK; },
      device_logic_id);
}

SIM_EXPORT int dcmi_get_card_id_device_id_from_logicid(int* card_id, int* device_id, unsigned logic) {
  if (!library().ready()) return DCMI_ERR_CODE_NOT_REDAY;
  if (card_id == nullptr || device_id == nullptr) return DCMI_ERR_CODE_INVALID_PARAMETER;
  if (logic >= library().chips().size()) return DCMI_ERR_CODE_DEVICE_NOT_EXIST;
  *card_id = static_cast<int>(library().chips()[logic]->number());
  *device_id = kNpuDevice;
  return DCMI_OK;
}

SIM_EXPORT int dcmi_get_device_phyid_from_logicid(unsigned logicid, unsigned* phyid) {
  int card = 0, device = 0;
  if (phyid == nullptr) return DCMI_ERR_CODE_INVALID_PARAMETER;
  const int error = dcmi_get_card_id_device_id_from_logicid(&card, &device, logicid);
  if (error == DCMI_OK) *phyid = static_cast<unsigned>(card);
  return error;
}

SIM_EXPORT int dcmi_get_device_logicid_from_phyid(unsigned phyid, unsigned* logicid) {
  return about(
      static_cast<int>(phyid), kNpuDevice, [&](const Chip& chip) { return *logicid = chip.logic, DCMI_OK; },
      logicid);
}

SIM_EXPORT int dcmi_get_device_chip_info(int card_id, int device_id, struct dcmi_chip_info* info) {
  return about(card_id, device_id, [&](const Chip& chip) { return describe(chip, *info), DCMI_OK; }, info);
}

SIM_EXPORT int dcmi_get_device_chip_info_v2(int card_id, int device_id, struct dcmi_chip_info_v2* info) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        describe(chip, *info);
        put(info->npu_name, chip.card.info().name);
        return DCMI_OK;
      },
      info);
}

SIM_EXPORT int dcmi_get_device_die_v2(int card_id, int device_id, enum dcmi_die_type input_type,
                                      struct dcmi_die_id* die_id) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        if (input_type != VDIE && input_type != NDIE) return DCMI_ERR_CODE_INVALID_PARAMETER;
        if (!simascend::die_words(chip.card.info().uuid, die_id->soc_die)) return DCMI_ERR_CODE_INNER_ERR;
        // A chip has two; the one that names it is the VDIE.
        if (input_type == NDIE) die_id->soc_die[0] = ~die_id->soc_die[0];
        return DCMI_OK;
      },
      die_id);
}

SIM_EXPORT int dcmi_get_device_pcie_info_v2(int card_id, int device_id, struct dcmi_pcie_info_all* info) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        *info = {};
        unsigned domain = 0;
        std::sscanf(chip.card.info().pci_address, "%x:%x:%x.%x", &domain, &info->bdf_busid,
                    &info->bdf_deviceid, &info->bdf_funcid);
        info->domain = static_cast<int>(domain);
        info->venderid = static_cast<unsigned>(std::stoul(chip.profile.at("pci_vendor"), nullptr, 16));
        info->deviceid = static_cast<unsigned>(std::stoul(chip.profile.at("pci_device"), nullptr, 16));
        return DCMI_OK;
      },
      info);
}

SIM_EXPORT int dcmi_get_device_health(int card_id, int device_id, unsigned* health) {
  return about(
      card_id, device_id,
      [&](const Chip&) { return *health = simascend::current_faults().health, DCMI_OK; }, health);
}

SIM_EXPORT int dcmi_get_device_memory_info_v3(int card_id, int device_id,
                                              struct dcmi_get_memory_info_stru* info) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        *info = {};
        if (chip.has_hbm()) return DCMI_OK;  // it has no other memory, as npu-smi's "0 / 0" says
        info->memory_size = chip.mib(chip.card.info().memory_bytes);
        info->memory_available = info->memory_size - used_mib(chip);
        info->utiliza = memory_percent(chip);
        return DCMI_OK;
      },
      info);
}

SIM_EXPORT int dcmi_get_device_hbm_info(int card_id, int device_id, struct dcmi_hbm_info* info) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        if (!chip.has_hbm()) return DCMI_ERR_CODE_NOT_SUPPORT;
        *info = {};
        info->memory_size = chip.mib(chip.card.info().memory_bytes);
        info->memory_usage = used_mib(chip);
        info->temp = static_cast<int>(chip.setting("temperature"));
        return DCMI_OK;
      },
      info);
}

SIM_EXPORT int dcmi_get_device_utilization_rate(int card_id, int device_id, int input_type, unsigned* rate) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        switch (input_type) {
          case 1: *rate = chip.has_hbm() ? 0 : memory_percent(chip); return DCMI_OK;  // DDR
          case 6: *rate = chip.has_hbm() ? memory_percent(chip) : 0; return DCMI_OK;  // HBM
          case 2: case 13:                                                            // AI core, NPU
            chip.card.settle();
            *rate = chip.card.utilisation_percent(sim::monotonic_now());
            return DCMI_OK;
          case 3: case 4: case 5: case 10: *rate = 0; return DCMI_OK;  // AI CPU, control CPU, bandwidths
          default: return DCMI_ERR_CODE_INVALID_PARAMETER;
        }
      },
      rate);
}

SIM_EXPORT int dcmi_get_device_resource_info(int card_id, int device_id, struct dcmi_proc_mem_info* infos,
                                             int* proc_num) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        *proc_num = 0;
        for (const auto& usage : running(chip)) {
          if (*proc_num == MAX_PROC_NUM_IN_DEVICE) break;
          infos[(*proc_num)++] = {usage.host_pid, usage.memory_bytes};
        }
        return DCMI_OK;
      },
      infos, proc_num);
}

SIM_EXPORT int dcmi_get_device_power_info(int card_id, int device_id, int* power) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        *power = static_cast<int>(chip.setting("power_deciwatts"));
        return *power == 0 ? DCMI_ERR_CODE_NOT_SUPPORT : DCMI_OK;
      },
      power);
}

SIM_EXPORT int dcmi_get_device_temperature(int card_id, int device_id, int* temperature) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) { return *temperature = static_cast<int>(chip.setting("temperature")), DCMI_OK; },
      temperature);
}

SIM_EXPORT int dcmi_create_vdevice(int card_id, int device_id, struct dcmi_create_vdev_res_stru* vdev,
                                   struct dcmi_create_vdev_out* out) {
  return about(
      card_id, device_id,
      [&](const Chip& chip) {
        if (!running(chip).empty()) return DCMI_ERR_CODE_RESOURCE_OCCUPIED;
        simascend::VnpuState state = simascend::load_vnpus(vnpu_file());
        *out = {};
        out->vdev_id = vdev->vdev_id;
        out->vfg_id = vdev->vfg_id;
        const std::string of(vdev->template_name, strnlen(vdev->template_name, sizeof(vdev->template_name)));
        const std::string refused = simascend::create_vnpu(chip.profile, chip.number(), state.chips[chip.number()],
                                                           of, out->vdev_id, out->vfg_id);
        if (!refused.empty()) return DCMI_ERR_CODE_INVALID_PARAMETER;
        simascend::save_vnpus(vnpu_file(), state);
        return DCMI_OK;
      },
      vdev, out);
}

SIM_EXPORT int dcmi_set_destroy_vdevice(int card_id, int device_id, unsigned vdevid) {
  return about(card_id, device_id, [&](const Chip& chip) {
    simascend::VnpuState state = simascend::load_vnpus(vnpu_file());
    auto& vnpus = state.chips[chip.number()];
    const auto found = std::find_if(vnpus.begin(), vnpus.end(), [&](const auto& one) { return one.id == vdevid; });
    if (found == vnpus.end()) return DCMI_ERR_CODE_CONFIG_INFO_NOT_EXIST;
    if (simascend::current_faults().busy_vnpu == vdevid) return DCMI_ERR_CODE_RESOURCE_OCCUPIED;
    vnpus.erase(found);
    simascend::save_vnpus(vnpu_file(), state);
    return DCMI_OK;
  });
}
