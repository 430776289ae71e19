// SPDX-License-Identifier: GPL-3.0-or-later
//
// Where the node's programs find things; each place can be moved by a variable, so that a developer's
// machine, or a test, needs no root and no testbed.
#pragma once

#include <string>

namespace simnvidia {

// $SIMGPU_PCI, else /sys/bus/pci/devices.
std::string pci_tree();
// $SIMGPU_PROC, else /proc/driver.
std::string proc_driver();
// $SIMGPU_SHARE, else ../share/nvidia-sim beside this program, else /usr/share/nvidia-sim.
std::string share_directory();
// The version of the "kernel module": $SIMGPU_PROC/nvidia/version when nvidia-sim-module made it, else
// that of the installed files. Throws when neither is there.
std::string module_version();
// The version of the installed files. Throws when there are none.
std::string installed_version();

}  // namespace simnvidia
