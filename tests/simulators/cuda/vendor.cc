// SPDX-License-Identifier: GPL-3.0-or-later
#include "vendor.h"

#include <climits>
#include <cstdlib>
#include <sstream>

#include <dlfcn.h>
#include <unistd.h>

#include "hardware.h"
#include "mig.h"
#include "session.h"

namespace simnvidia {
namespace {

struct Branch {
  int driver;
  int cuda;
};
// The CUDA version of each driver branch, newest first.
constexpr Branch kBranches[] = {{580, 13000}, {575, 12090}, {570, 12080}, {565, 12070}, {560, 12060},
                                {555, 12050}, {550, 12040}, {545, 12030}, {535, 12020}, {530, 12010},
                                {525, 12000}, {0, 11040}};

bool names(const sim::CardInfo& card, const std::string& entry, std::size_t place) {
  if (entry.rfind("GPU-", 0) == 0 || entry.rfind("MIG-", 0) == 0) return std::string(card.uuid).rfind(entry, 0) == 0;
  return entry == std::to_string(place);
}

bool is_there(const std::string& node) { return access((sim::device_directory() + "/" + node).c_str(), F_OK) == 0; }

// Whether the nodes that open an instance are there; a card needs none.
bool opens(const sim::CardInfo& card) {
  if (card.part_of == sim::kWhole) return true;
  const auto profile = sim::parse_settings(card.attributes, card.profile);
  const auto gi = static_cast<unsigned>(sim::number(profile, "mig_gpu_instance", card.profile));
  return is_there(capability_node(capability(card.minor, gi))) && is_there(capability_node(capability(card.minor, gi, 0)));
}

}  // namespace

std::vector<std::size_t> visible(const sim::Fleet& fleet) {
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < fleet.cards; ++i) {
    const sim::CardInfo& card = fleet.card[i].info;
    if (is_there("nvidia" + std::to_string(card.minor)) && opens(card)) found.push_back(i);
  }
  return found;
}

std::vector<std::size_t> cuda_visible(const sim::Fleet& fleet, const char* wanted) {
  std::vector<std::size_t> all, instances;
  for (const std::size_t i : visible(fleet)) {
    const sim::CardInfo& card = fleet.card[i].info;
    if (card.part_of != sim::kWhole) instances.push_back(i);
    else if (card.parts == 0) all.push_back(i);
  }
  if (all.empty() && !instances.empty()) all.push_back(instances.front());
  if (wanted == nullptr) return all;
  std::vector<std::size_t> chosen;
  std::istringstream entries(wanted);
  std::string entry;
  while (std::getline(entries, entry, ',')) {
    const std::vector<std::size_t>& among = entry.rfind("MIG-", 0) == 0 ? instances : all;
    const std::size_t before = chosen.size();
    for (std::size_t place = 0; place < among.size() && chosen.size() == before; ++place) {
      if (names(fleet.card[among[place]].info, entry, place)) chosen.push_back(among[place]);
    }
    if (chosen.size() == before) break;
    if (fleet.card[chosen.back()].info.part_of != sim::kWhole) return {chosen.back()};
  }
  return chosen;
}

int cuda_version(const std::string& driver_version) {
  const int major = std::atoi(driver_version.c_str());
  for (const Branch& branch : kBranches) {
    if (major >= branch.driver) return branch.cuda;
  }
  return 0;
}

std::string library_version(const void* symbol) {
  Dl_info info{};
  char resolved[PATH_MAX];
  if (dladdr(symbol, &info) == 0 || realpath(info.dli_fname, resolved) == nullptr) return "";
  const std::string path = resolved;
  const auto so = path.rfind(".so.");
  if (so == std::string::npos) return "";
  const std::string version = path.substr(so + 4);
  return version.find('.') == std::string::npos ? "" : version;
}

}  // namespace simnvidia
