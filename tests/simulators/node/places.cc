// SPDX-License-Identifier: GPL-3.0-or-later
#include "places.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "hardware.h"

namespace simnvidia {
namespace {

std::string moved(const char* variable, const std::string& usual) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0' ? value : usual;
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  …" -> "580.95.05"
std::string version_in(const std::string& text) {
  const std::string before = "Kernel Module  ";
  const auto at = text.find(before);
  if (at == std::string::npos) return "";
  const auto begin = at + before.size();
  return text.substr(begin, text.find(' ', begin) - begin);
}

}  // namespace

std::string pci_tree() { return moved("SIMGPU_PCI", "/sys/bus/pci/devices"); }

std::string proc_driver() { return moved("SIMGPU_PROC", "/proc/driver"); }

std::string share_directory() {
  std::error_code ignored;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored);
  const auto beside = program.parent_path().parent_path() / "share/nvidia-sim";
  const bool there = std::filesystem::is_directory(beside, ignored);
  return moved("SIMGPU_SHARE", there ? beside.string() : "/usr/share/nvidia-sim");
}

std::string installed_version() {
  const std::string path = share_directory() + "/version";
  const auto settings = sim::parse_settings(sim::read_text(path), path);
  const auto found = settings.find("version");
  if (found == settings.end()) throw std::runtime_error(path + ": no line 'version …'");
  return found->second;
}

std::string module_version() {
  const std::string path = proc_driver() + "/nvidia/version";
  if (!std::filesystem::exists(path)) return installed_version();
  const std::string version = version_in(sim::read_text(path));
  if (version.empty()) throw std::runtime_error(path + " names no version; restart nvidia-sim-module");
  return version;
}

}  // namespace simnvidia
