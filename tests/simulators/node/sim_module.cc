// SPDX-License-Identifier: GPL-3.0-or-later
//
// nvidia-sim-module start|stop: what loading the kernel module does on a real host, as far as anyone
// looks: /proc/driver/nvidia/{version,gpus} and the device nodes.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "hardware.h"
#include "mig.h"
#include "places.h"
#include "session.h"
#include "vendor.h"

namespace {

namespace fs = std::filesystem;

constexpr long kTmpfs = 0x01021994;
constexpr unsigned kMajor = 195;     // NVIDIA's registered number
constexpr unsigned kUvmMajor = 511;  // the real one is dynamic
constexpr unsigned kCapsMajor = 510;  // likewise
constexpr unsigned kControlMinor = 255;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

bool on_tmpfs(const std::string& path) {
  struct statfs about {};
  return statfs(path.c_str(), &about) == 0 && about.f_type == kTmpfs;
}

void write_file(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream stream(path);
  stream << text;
  if (!stream.flush()) fail("cannot write " + path);
}

void make_node(const std::string& name, unsigned major, unsigned minor) {
  const std::string path = sim::device_directory() + "/" + name;
  unlink(path.c_str());
  if (mknod(path.c_str(), S_IFCHR | 0666, makedev(major, minor)) == 0) {
    chmod(path.c_str(), 0666);
    return;
  }
  if (errno != EPERM) fail("mknod " + path);
  // Not root, on a developer's machine: only the name matters to the simulated libraries.
  write_file(path, "");
}

sim::Settings profile_of(const sim::FoundCard& card) {
  const auto profile = card.simulated.find("profile");
  if (profile == card.simulated.end()) throw std::runtime_error(card.address + "/simgpu: no line 'profile …'");
  const std::string path = simnvidia::share_directory() + "/profiles/" + profile->second + ".conf";
  sim::Settings settings = sim::parse_settings(sim::read_text(path), path);
  settings.emplace("name", profile->second);
  return settings;
}

std::string information(const sim::FoundCard& card, std::size_t minor) {
  const auto uuid = card.simulated.find("uuid");
  return "Model: \t\t " + profile_of(card).at("name") + "\nIRQ:   \t\t 0\nGPU UUID: \t " +
         (uuid == card.simulated.end() ? "?" : uuid->second) +
         "\nVideo BIOS: \t simulated\nBus Type: \t PCIe\nDMA Size: \t 47 bits\n"
         "DMA Mask: \t 0x7fffffffffff\nBus Location: \t " + card.address +
         "\nDevice Minor: \t " + std::to_string(minor) + "\nGPU Excluded:\t No\n";
}

// What numbers the device nodes of MIG instances have, of all that could be made.
std::string mig_minors(std::size_t cards) {
  std::string text = "config 1\nmonitor 2\n";
  for (unsigned card = 0; card < cards; ++card) {
    for (unsigned gi = 0; gi < simnvidia::kGpuInstances; ++gi) {
      const std::string name = "gpu" + std::to_string(card) + "/gi" + std::to_string(gi);
      text += name + "/access " + std::to_string(simnvidia::capability(card, gi)) + "\n";
      for (unsigned ci = 0; ci < simnvidia::kComputeInstances; ++ci) {
        text += name + "/ci" + std::to_string(ci) + "/access " + std::to_string(simnvidia::capability(card, gi, ci)) + "\n";
      }
    }
  }
  return text;
}

// One device node of an instance, and the file in which the driver tells its number.
void make_capability(unsigned number, const std::string& access) {
  make_node(simnvidia::capability_node(number), kCapsMajor, number);
  write_file(access, "DeviceFileMinor: " + std::to_string(number) + "\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
}

void make_instances(const sim::FoundCard& card, unsigned minor) {
  const auto parts = simnvidia::parts_of(profile_of(card), card.address);
  if (parts.empty()) return;
  fs::create_directories(sim::device_directory() + "/nvidia-caps");
  const std::string base = simnvidia::proc_driver() + "/nvidia/capabilities/gpu" + std::to_string(minor) + "/mig/gi";
  for (const auto& part : parts) {
    const std::string of = base + std::to_string(part.gpu_instance);
    make_capability(simnvidia::capability(minor, part.gpu_instance), of + "/access");
    make_capability(simnvidia::capability(minor, part.gpu_instance, 0), of + "/ci0/access");
  }
}

void start() {
  const auto cards = sim::find_cards(simnvidia::pci_tree(), simnvidia::kPciVendor);
  if (cards.empty()) {
    throw std::runtime_error("no simulated card under " + simnvidia::pci_tree() +
                             "; modprobe of a real module would fail with 'No such device'");
  }
  const std::string proc = simnvidia::proc_driver();
  if (proc.rfind("/proc", 0) == 0 && !on_tmpfs(proc) &&
      mount("nvidia-sim", proc.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755") != 0) {
    fail("cannot mount a tmpfs on " + proc);
  }
  write_file(proc + "/nvidia/version",
             "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " + simnvidia::installed_version() +
                 "  Mon Jan  1 00:00:00 UTC 2024\nGCC version:  simulated: there is no such module, this file "
                 "was written by nvidia-sim-module\n");
  write_file(proc + "/nvidia/params", "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\n"
                                      "DeviceFileMode: 438\n");
  make_node("nvidiactl", kMajor, kControlMinor);
  make_node("nvidia-uvm", kUvmMajor, 0);
  make_node("nvidia-uvm-tools", kUvmMajor, 1);
  for (std::size_t i = 0; i < cards.size(); ++i) {
    write_file(proc + "/nvidia/gpus/" + cards[i].address + "/information", information(cards[i], i));
    make_node("nvidia" + std::to_string(i), kMajor, static_cast<unsigned>(i));
    make_instances(cards[i], static_cast<unsigned>(i));
  }
  write_file(proc + "/nvidia-caps/mig-minors", mig_minors(cards.size()));
  std::printf("nvidia-sim-module: simulated driver %s, %zu card(s)\n",
              simnvidia::installed_version().c_str(), cards.size());
}

void stop() {
  const std::string proc = simnvidia::proc_driver();
  fs::remove_all(proc + "/nvidia");
  fs::remove_all(proc + "/nvidia-caps");
  fs::remove_all(sim::device_directory() + "/nvidia-caps");
  if (proc.rfind("/proc", 0) == 0 && on_tmpfs(proc)) umount2(proc.c_str(), MNT_DETACH);
  for (const auto& entry : fs::directory_iterator(sim::device_directory())) {
    const std::string name = entry.path().filename().string();
    const bool card = name.rfind("nvidia", 0) == 0 && name.size() > 6 &&
                      name.find_first_not_of("0123456789", 6) == std::string::npos;
    if (card || name == "nvidiactl" || name == "nvidia-uvm" || name == "nvidia-uvm-tools") {
      fs::remove(entry.path());
    }
  }
}

}  // namespace

int main(int count, char** words) {
  const std::string verb = count == 2 ? words[1] : "";
  if (verb != "start" && verb != "stop") {
    std::fprintf(stderr, "usage: nvidia-sim-module start|stop\n");
    return 2;
  }
  try {
    verb == "start" ? start() : stop();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nvidia-sim-module: %s\n", error.what());
    return 1;
  }
  return 0;
}
