// SPDX-License-Identifier: GPL-3.0-or-later
//
// npu-smi (simulated): the commands that the collection uses, over the simulated DCMI. Tables are laid
// out as the real program's of the driver's release, told by public logs of their users.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <unistd.h>

#include "ascend.h"
#include "chips.h"
#include "dcmi_interface_api.h"
#include "vnpu.h"

namespace {

constexpr int kFailed = 1, kUsage = 215;

std::string form(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return text;
}

struct Ask {
  std::string type;
  int npu = -1, chip = -1;
  std::string of;
  unsigned vnpu = simascend::kChosen, group = simascend::kChosen;
  int mode = -1;
};

struct Npu {
  int id;
  dcmi_chip_info chip;
  std::string bus;
  unsigned health;

  const char* name() const { return reinterpret_cast<const char*>(chip.chip_name); }
  bool small() const { return std::strncmp(name(), "310", 3) == 0; }
};

std::vector<Npu> npus() {
  int count = 0, ids[16];
  std::vector<Npu> found;
  if (dcmi_get_card_list(&count, ids, 16) != DCMI_OK) return found;
  for (int i = 0; i < count; ++i) {
    Npu one{ids[i], {}, "", 0};
    dcmi_pcie_info_all pcie{};
    dcmi_get_device_chip_info(one.id, 0, &one.chip);
    dcmi_get_device_health(one.id, 0, &one.health);
    dcmi_get_device_pcie_info_v2(one.id, 0, &pcie);
    one.bus = form("%04X:%02X:%02X.%X", pcie.domain, pcie.bdf_busid, pcie.bdf_deviceid, pcie.bdf_funcid);
    found.push_back(one);
  }
  return found;
}

std::string driver() {
  char version[64] = "";
  dcmi_get_driver_version(version, sizeof(version));
  return version;
}

const char* health_text(unsigned health) {
  switch (health) {
    case 0: return "OK";
    case 1: return "Warning";
    case 2: return "Alarm";
    case 3: return "Critical";
    default: return "UNKNOWN";
  }
}

struct Memory {
  unsigned long long used, total;
};

Memory memory_of(const Npu& npu) {
  dcmi_hbm_info hbm{};
  if (dcmi_get_device_hbm_info(npu.id, 0, &hbm) == DCMI_OK) return {hbm.memory_usage, hbm.memory_size};
  dcmi_get_memory_info_stru ddr{};
  dcmi_get_device_memory_info_v3(npu.id, 0, &ddr);
  return {ddr.memory_size - ddr.memory_available, ddr.memory_size};
}

std::string power_of(const Npu& npu) {
  int deciwatts = 0;
  return dcmi_get_device_power_info(npu.id, 0, &deciwatts) == DCMI_OK ? form("%.1f", deciwatts / 10.0) : "NA";
}

unsigned rate(const Npu& npu, int type) {
  unsigned percent = 0;
  dcmi_get_device_utilization_rate(npu.id, 0, type, &percent);
  return percent;
}

std::vector<dcmi_proc_mem_info> processes(const Npu& npu) {
  std::vector<dcmi_proc_mem_info> all(MAX_PROC_NUM_IN_DEVICE);
  int count = 0;
  if (dcmi_get_device_resource_info(npu.id, 0, all.data(), &count) != DCMI_OK) count = 0;
  all.resize(static_cast<std::size_t>(count));
  return all;
}

std::string command_of(int pid) {
  std::ifstream stream("/proc/" + std::to_string(pid) + "/comm");
  std::string name;
  std::getline(stream, name);
  return name.empty() ? "NA" : name;
}

// --- npu-smi info -----------------------------------------------------------------------------

// One release's table: the widths of its three columns, and of what stands in the third.
struct Table {
  int first, second, third;
  int power, temperature;
  bool device;     // a column "Device" beside "Chip", as for the 310P
  bool container;  // the processes' table has a fifth column
};

constexpr Table kClassic{25, 13, 50, 11, 17, false, false};
constexpr Table kWide{25, 13, 68, 20, 23, false, true};
constexpr Table kSmall{29, 15, 52, 12, 17, true, false};

const Table& table_for(const Npu& npu, const std::string& version) {
  if (npu.small()) return kSmall;
  return std::atoi(version.c_str()) >= 26 ? kWide : kClassic;
}

std::string rule(const Table& t, char line) {
  return "+" + std::string(t.first + 2, line) + "+" + std::string(t.second + 2, line) + "+" +
         std::string(t.third + 2, line) + "+\n";
}

std::string row(const Table& t, const std::string& a, const std::string& b, const std::string& c) {
  return form("| %-*s | %-*s | %-*s|\n", t.first, a.c_str(), t.second, b.c_str(), t.third + 1, c.c_str());
}

std::string third(const Table& t, const std::string& a, const std::string& b, const std::string& c) {
  return form("%-*s %-*s %s", t.power, a.c_str(), t.temperature, b.c_str(), c.c_str());
}

void print_chips(const Table& t, const std::vector<Npu>& all, const std::string& version) {
  const int inner = t.first + t.second + t.third + 8;
  std::string out = "+" + std::string(inner, '-') + "+\n";
  const std::string title = form("npu-smi %-24s Version: %s", version.c_str(), version.c_str());
  out += form("| %-*s |\n", inner - 2, title.c_str()) + rule(t, '-');
  out += row(t, t.device ? "NPU     Name" : "NPU   Name", "Health", third(t, "Power(W)", "Temp(C)", "Hugepages-Usage(page)"));
  out += t.device ? row(t, "Chip    Device", "Bus-Id", form("%-*s %s", t.power, "AICore(%)", "Memory-Usage(MB)"))
                  : row(t, "Chip", "Bus-Id", third(t, "AICore(%)", "Memory-Usage(MB)", "HBM-Usage(MB)"));
  out += rule(t, '=');
  for (const Npu& npu : all) {
    int temperature = 0;
    dcmi_get_device_temperature(npu.id, 0, &temperature);
    const Memory memory = memory_of(npu);
    out += row(t, form(t.device ? "%-7d %s" : "%-5d %s", npu.id, npu.name()), health_text(npu.health),
               third(t, power_of(npu), std::to_string(temperature), "0    / 0"));
    const std::string busy = std::to_string(rate(npu, 2));
    out += t.device ? row(t, form("%-7d %d", 0, npu.id), npu.bus,
                          form("%-*s %-4llu / %llu", t.power, busy.c_str(), memory.used, memory.total))
                    : row(t, "0", npu.bus,
                          third(t, busy, "0    / 0", form("%-5llu/ %llu", memory.used, memory.total)));
    out += rule(t, '=');
  }
  std::fputs(out.c_str(), stdout);
}

void print_processes(const Table& t, const std::vector<Npu>& all) {
  const int name = t.container ? 18 : 24, memory = t.container ? 21 : t.third - name - 3;
  const auto line = [&](const std::string& npu, const std::string& chip, const std::string& pid,
                        const std::string& command, const std::string& held, const std::string& inside) {
    const std::string last = form("%-*s | %-*s", name, command.c_str(), memory, held.c_str());
    return row(t, form("%-7s %s", npu.c_str(), chip.c_str()), pid,
               t.container ? last + form(" | %-23s", inside.c_str()) : last);
  };
  std::string out = rule(t, '-') + line("NPU", "Chip", "Process id", "Process name", "Process memory(MB)",
                                        "Process id in container") + rule(t, '=');
  for (const Npu& npu : all) {
    const auto running = processes(npu);
    for (const auto& one : running) {
      out += line(std::to_string(npu.id), "0", std::to_string(one.proc_id), command_of(one.proc_id).substr(0, name),
                  std::to_string(one.proc_mem_usage >> 20), "NA");
    }
    if (running.empty()) {
      out += form("| %-*s |\n", t.first + t.second + t.third + 6,
                  form("No running processes found in NPU %d", npu.id).c_str());
    }
    out += rule(t, '=');
  }
  std::fputs(out.c_str(), stdout);
}

int info_table() {
  const auto all = npus();
  if (all.empty()) return std::puts("No NPU device is found."), kFailed;
  const std::string version = driver();
  if (simascend::current_faults().unknown_table) {
    std::printf("[npu-smi %s]\nid=0;model=%s;state=OK\n", version.c_str(), all.front().name());
    return 0;
  }
  const Table& t = table_for(all.front(), version);
  print_chips(t, all, version);
  print_processes(t, all);
  return 0;
}

int info_list() {
  const auto all = npus();
  std::printf("\t%-30s : %zu\n", "Total Count", all.size());
  for (const Npu& npu : all) std::printf("\n\t%-30s : %d\n\t%-30s : 1\n", "NPU ID", npu.id, "Chip Count");
  return 0;
}

int info_map() {
  std::printf("\t%-30s %-30s %-30s %-30s\n", "NPU ID", "Chip ID", "Chip Logic ID", "Chip Name");
  for (const Npu& npu : npus()) {
    int logic = 0, last = 0, mcu = -1, cpu = -1;
    dcmi_get_device_logic_id(&logic, npu.id, 0);
    dcmi_get_device_id_in_card(npu.id, &last, &mcu, &cpu);
    std::printf("\t%-30d %-30d %-30d Ascend %s\n", npu.id, 0, logic, npu.name());
    if (mcu >= 0) std::printf("\t%-30d %-30d %-30s %-30s\n", npu.id, mcu, "-", "Mcu");
  }
  return 0;
}

// --- npu-smi info -t … ------------------------------------------------------------------------

void field(const char* name, const std::string& value) { std::printf("\t%-30s : %s\n", name, value.c_str()); }

std::string vnpu_file() { return simascend::state_directory() + "/vnpu"; }

const sim::Settings& profile_of(const Npu& npu) { return simascend::profile_of_card(npu.id); }

int show_health(const Npu& npu, const Ask&) {
  field("Health", health_text(npu.health));
  field("Error Code", "NA");
  field("Error Information", "NA");
  return 0;
}

int show_board(const Npu& npu, const Ask&) {
  dcmi_pcie_info_all pcie{};
  dcmi_get_device_pcie_info_v2(npu.id, 0, &pcie);
  std::ifstream stream(simascend::share_directory() + "/firmware");
  std::string firmware;
  std::getline(stream, firmware);
  field("NPU ID", std::to_string(npu.id));
  field("Software Version", driver());
  field("Firmware Version", firmware.empty() ? "NA" : firmware);
  field("Compatibility", "OK");
  field("PCIe Bus Info", npu.bus);
  field("PCI Vendor ID", form("0x%04x", pcie.venderid));
  field("PCI Device ID", form("0x%04X", pcie.deviceid));
  field("Chip Count", "1");
  return 0;
}

int show_usages(const Npu& npu, const Ask&) {
  const Memory memory = memory_of(npu);
  field("NPU ID", std::to_string(npu.id));
  field("Chip Count", "1");
  std::puts("");
  field(npu.small() ? "DDR Capacity(MB)" : "HBM Capacity(MB)", std::to_string(memory.total));
  field(npu.small() ? "DDR Usage Rate(%)" : "HBM Usage Rate(%)", std::to_string(rate(npu, npu.small() ? 1 : 6)));
  field("Aicore Usage Rate(%)", std::to_string(rate(npu, 2)));
  field("Chip ID", "0");
  return 0;
}

int show_proc_mem(const Npu& npu, const Ask&) {
  field("NPU ID", std::to_string(npu.id));
  field("Chip ID", "0");
  for (const auto& one : processes(npu)) {
    std::printf("\tProcess id:%d  Process name:%s  Process memory(MB):%lu\n", one.proc_id,
                command_of(one.proc_id).c_str(), one.proc_mem_usage >> 20);
  }
  return 0;
}

int show_templates(const Npu& npu, const Ask&) {
  const std::string line(90, '-');
  std::printf("+%s+\n|%-90s|\n", line.c_str(), "NPU instance template info is:");
  std::printf("|%-19s %-9s %-9s %-9s %-14s %-14s %-10s|\n", "Name", "AICORE", "Memory", "AICPU", "VPC", "VENC", "JPEGD");
  std::printf("|%-19s %-9s %-9s %-9s %-14s %-14s %-10s|\n", "", "", " GB", "", "PNGD", "VDEC", "JPEGE");
  std::printf("|%s|\n", std::string(90, '=').c_str());
  for (const auto& one : simascend::templates_of(profile_of(npu))) {
    const auto& takes = one.takes;
    std::printf("|%-19s %-9u %-9u %-9u %-14u %-14u %-10u|\n", one.name.c_str(), takes.aicore, takes.memory_gb,
                takes.aicpu, takes.vpc, takes.venc, takes.jpegd);
    std::printf("|%-49s %-14u %-14u %-10u|\n+%s+\n", " ", 0, takes.vdec, takes.jpege, line.c_str());
  }
  return 0;
}

int show_vnpus(const Npu& npu, const Ask&) {
  const auto profile = profile_of(npu);
  simascend::VnpuState state = simascend::load_vnpus(vnpu_file());
  const auto& vnpus = state.chips[static_cast<unsigned>(npu.id)];
  const auto total = simascend::total_of(profile), left = simascend::free_of(profile, vnpus);
  const auto pair = [](unsigned a, unsigned b) { return std::to_string(a) + "/" + std::to_string(b); };
  const std::string line(79, '-');
  const auto text = [](const std::string& words) { std::printf("| %-77s |\n", words.c_str()); };
  std::printf("+%s+\n", line.c_str());
  text("NPU resource static info as follow:");
  text("Format:Free/Total                   NA: Currently, query is not supported.");
  text("AICORE    Memory    AICPU    VPC    VENC    VDEC    JPEGD    JPEGE    PNGD");
  text("           GB");
  std::printf("|%s|\n", std::string(79, '=').c_str());
  text(form("%-9s %-9s %-8s %-6s %-7s %-7s %-8s %-8s %s", pair(left.aicore, total.aicore).c_str(),
            pair(left.memory_gb, total.memory_gb).c_str(), pair(left.aicpu, total.aicpu).c_str(),
            pair(left.vpc, total.vpc).c_str(), pair(left.venc, total.venc).c_str(), pair(left.vdec, total.vdec).c_str(),
            pair(left.jpegd, total.jpegd).c_str(), pair(left.jpege, total.jpege).c_str(), "NA/NA"));
  std::printf("+%s+\n", line.c_str());
  text(form("Total number of vnpu: %zu", vnpus.size()));
  std::printf("+%s+\n", line.c_str());
  if (vnpus.empty()) return 0;
  text(" Vnpu ID  |  Vgroup ID     |  Container ID  |  Status  |  Template Name");
  std::printf("+%s+\n", line.c_str());
  const auto busy = simascend::current_faults().busy_vnpu;
  for (const auto& one : vnpus) {
    const bool used = one.id == busy;
    text(form(" %-8u |  %-13u |  %-13s |  %-7d |  %s", one.id, one.group, used ? "0123456789ab" : "ffffffffffff",
              used ? 1 : 0, one.of.c_str()));
  }
  std::printf("+%s+\n", line.c_str());
  return 0;
}

// What needs a chip, by its name behind -t.
struct Shown {
  const char* type;
  int (*show)(const Npu&, const Ask&);
};
constexpr Shown kShown[] = {{"health", show_health},   {"board", show_board},
                            {"usages", show_usages},   {"memory", show_usages},
                            {"proc-mem", show_proc_mem}, {"template-info", show_templates},
                            {"info-vnpu", show_vnpus}};

int usage() {
  std::puts("Usage: npu-smi info [-l | -m | -t type -i id -c chip_id]\n"
            "       npu-smi set -t type [-i id -c chip_id -f template -v vnpu_id -g group_id -d mode]");
  return kUsage;
}

int info_of(const Ask& ask) {
  if (ask.type == "vnpu-mode") {
    field("vnpu-mode", simascend::load_vnpus(vnpu_file()).virtual_machines ? "vm" : "docker");
    return 0;
  }
  if (ask.type == "vnpu-cfg-recover") {
    field("VNPU config recover mode", simascend::load_vnpus(vnpu_file()).recover ? "Enable" : "Disable");
    return 0;
  }
  const auto all = npus();
  for (const Shown& known : kShown) {
    if (ask.type != known.type) continue;
    const bool any = ask.type == "template-info" && ask.npu < 0;
    const auto npu = std::find_if(all.begin(), all.end(), [&](const Npu& one) { return any || one.id == ask.npu; });
    if (npu == all.end() || ask.chip > 0) return std::puts("Error parameter of -i or -c"), kUsage;
    return known.show(*npu, ask);
  }
  return usage();
}

// --- npu-smi set ------------------------------------------------------------------------------

int told(bool well, const std::string& message) {
  field("Status", well ? "OK" : "Fail");
  field("Message", message);
  return well ? 0 : kFailed;
}

int create(const Ask& ask) {
  dcmi_create_vdev_res_stru wanted{};
  wanted.vdev_id = ask.vnpu;
  wanted.vfg_id = ask.group;
  std::snprintf(wanted.template_name, sizeof(wanted.template_name), "%s", ask.of.c_str());
  dcmi_create_vdev_out out{};
  const int error = dcmi_create_vdevice(ask.npu, ask.chip, &wanted, &out);
  if (error == DCMI_OK) return told(true, "Create vnpu success");
  if (error == DCMI_ERR_CODE_RESOURCE_OCCUPIED) return told(false, "Create vnpu failed, the chip is used by a process");
  return told(false, form("Create vnpu failed, ret is %d", error));
}

int destroy(const Ask& ask) {
  const int error = dcmi_set_destroy_vdevice(ask.npu, ask.chip, ask.vnpu);
  if (error == DCMI_OK) return told(true, form("Destroy vnpu %u success", ask.vnpu));
  if (error == DCMI_ERR_CODE_RESOURCE_OCCUPIED) return told(false, form("Destroy vnpu %u failed, it is in use", ask.vnpu));
  return told(false, form("Destroy vnpu %u failed, ret is %d", ask.vnpu, error));
}

int configure(const Ask& ask) {
  simascend::VnpuState state = simascend::load_vnpus(vnpu_file());
  if (ask.mode != 0 && ask.mode != 1) return usage();
  if (ask.type == "vnpu-mode") {
    for (const auto& [chip, vnpus] : state.chips) {
      if (!vnpus.empty()) return told(false, "Set vnpu mode failed, there are vnpus");
    }
    state.virtual_machines = ask.mode == 1;
  } else {
    state.recover = ask.mode == 1;
  }
  simascend::save_vnpus(vnpu_file(), state);
  return told(true, ask.type == "vnpu-mode"
                        ? form("Set vnpu mode %s success", ask.mode ? "vm" : "docker")
                        : form("The VNPU config recover mode %s is set successfully.", ask.mode ? "Enable" : "Disable"));
}

int set(const Ask& ask) {
  // A test's own state needs no root.
  if (geteuid() != 0 && std::getenv("SIMNPU_STATE") == nullptr) {
    return told(false, "This command needs root");
  }
  if (ask.type == "create-vnpu" && ask.npu >= 0 && !ask.of.empty()) return create(ask);
  if (ask.type == "destroy-vnpu" && ask.npu >= 0 && ask.vnpu != simascend::kChosen) return destroy(ask);
  if (ask.type == "vnpu-mode" || ask.type == "vnpu-cfg-recover") return configure(ask);
  return usage();
}

// --- the command line -------------------------------------------------------------------------

bool parse(int count, char** words, int from, Ask& ask) {
  for (int i = from; i < count; i += 2) {
    if (i + 1 == count) return false;
    const std::string option = words[i], value = words[i + 1];
    const auto number = static_cast<unsigned>(std::strtoul(value.c_str(), nullptr, 10));
    if (option == "-t") ask.type = value;
    else if (option == "-i") ask.npu = static_cast<int>(number);
    else if (option == "-c") ask.chip = static_cast<int>(number);
    else if (option == "-f") ask.of = value;
    else if (option == "-v") ask.vnpu = number;
    else if (option == "-g") ask.group = number;
    else if (option == "-d") ask.mode = static_cast<int>(number);
    else return false;
  }
  return !ask.type.empty();
}

int started(int count, char** words) {
  const std::string verb = count > 1 ? words[1] : "", option = count > 2 ? words[2] : "";
  if (verb == "-v") return std::printf("npu-smi version: %s\n", driver().c_str()), 0;
  if (verb == "info" && count == 2) return info_table();
  if (verb == "info" && option == "-l") return info_list();
  if (verb == "info" && option == "-m") return info_map();
  Ask ask;
  if ((verb != "info" && verb != "set") || !parse(count, words, 2, ask)) return usage();
  return verb == "info" ? info_of(ask) : set(ask);
}

}  // namespace

int main(int count, char** words) {
  try {
    if (simascend::current_faults().npu_smi_hangs) pause();
    const int error = dcmi_init();
    if (error != DCMI_OK) {
      std::printf("dcmi module initialize failed. ret is %d\n", error);
      return 255;
    }
    return started(count, words);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "npu-smi (simulated): %s\n", error.what());
    return kFailed;
  }
}
