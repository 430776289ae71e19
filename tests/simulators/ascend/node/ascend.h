// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the simulated Ascend libraries and programs know of their vendor, and where they find things;
// each place can be moved by a variable, so that tests need no root and no testbed.
#pragma once

#include <string>
#include <vector>

#include "hardware.h"
#include "layout.h"

namespace simascend {

constexpr const char* kPciVendor = "0x19e5";

// $SIMNPU_SOCKET, else /run/npu-sim/socket: where the node's daemon listens.
std::string socket_path();
// $SIMNPU_DEV, else /dev: a card is seen where its davinci<minor> is.
std::string device_directory();
// $SIMNPU_PCI, else /sys/bus/pci/devices.
std::string pci_tree();
// $SIMNPU_SHARE, else ../share/npu-sim beside this program, else /usr/local/Ascend/driver/share/npu-sim.
std::string share_directory();
// $SIMNPU_STATE, else /var/lib/npu-sim: what survives a reboot, as the vNPU layout.
std::string state_directory();
// The version of the installed driver. Throws where there is none.
std::string installed_version();

// Indices of the cards whose device nodes exist where this process runs, in order of their minor.
std::vector<std::size_t> visible(const sim::Fleet& fleet);

// The card's profile.
sim::Settings profile_of(const sim::CardInfo& info);

// A die id as the five words that DCMI shows; a card's uuid holds them as "%08X-%08X-%08X-%08X-%08X".
// False where the text is of another form.
bool die_words(const std::string& uuid, unsigned (&words)[5]);

// Faults of the file named by $SIMNPU_FAULTS ("key value" lines), read anew at each call. Throws on an
// unknown key or a value that is no number: a misspelt fault must not look like health.
struct Faults {
  unsigned health = 0;              // what dcmi_get_device_health says of every card
  bool npu_smi_hangs = false;       // npu-smi answers nothing, until it is ended
  bool unknown_table = false;       // npu-smi prints tables that no release is known for
  std::uint64_t busy_vnpu = 0;      // this vNPU is in use
};
Faults current_faults();

}  // namespace simascend
