// SPDX-License-Identifier: GPL-3.0-or-later
#include "vendor.h"

#include <climits>
#include <cstdlib>
#include <sstream>

#include <dlfcn.h>
#include <unistd.h>

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
  if (entry.rfind("GPU-", 0) == 0) return std::string(card.uuid).rfind(entry, 0) == 0;
  return entry == std::to_string(place);
}

}  // namespace

std::vector<std::size_t> visible(const sim::Fleet& fleet) {
  const std::string directory = sim::device_directory();
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < fleet.cards; ++i) {
    const std::string node = directory + "/nvidia" + std::to_string(fleet.card[i].info.minor);
    if (access(node.c_str(), F_OK) == 0) found.push_back(i);
  }
  return found;
}

std::vector<std::size_t> cuda_visible(const sim::Fleet& fleet, const char* wanted) {
  const std::vector<std::size_t> all = visible(fleet);
  if (wanted == nullptr) return all;
  std::vector<std::size_t> chosen;
  std::istringstream entries(wanted);
  std::string entry;
  while (std::getline(entries, entry, ',')) {
    const std::size_t before = chosen.size();
    for (std::size_t place = 0; place < all.size() && chosen.size() == before; ++place) {
      if (names(fleet.card[all[place]].info, entry, place)) chosen.push_back(all[place]);
    }
    if (chosen.size() == before) break;
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
