// SPDX-License-Identifier: Apache-2.0
//
// gpu-monitor: what this container's slices grant and what its processes used over a period.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <getopt.h>

#include "nvml.h"
#include "report.h"
#include "xpu/place.h"
#include "xpu/upstream.h"

namespace xpu::monitor {
namespace {

enum Exit { kOk = 0, kUsage = 2, kNoSlice = 3, kBadConfig = 4, kNoLedger = 5 };

constexpr const char* kHelp =
    "usage: gpu-monitor [-p SECONDS] [-o table|json] [-h]\n"
    "\n"
    "Shows the slices of GPUs this container has: compute and memory used and granted, by\n"
    "process. Usage is GPU time measured by the interception library, averaged over the period,\n"
    "in percent of one whole card; it is printed once, when the period is over. Beside it stands\n"
    "what NVML says of the whole card in that time, its other users included.\n"
    "\n"
    "  -p, --period SECONDS   averaging period, 1 to 86400 (default 60)\n"
    "  -o, --output FORMAT    table (default) or json\n"
    "  -h, --help             this text\n"
    "\n"
    "exit status: 0 printed; 2 wrong usage; 3 this container has no slice; 4 its grant is damaged;\n"
    "5 its ledger is missing or damaged\n";

struct Options {
    long period_seconds = 60;
    bool json = false;
    bool help = false;
};

[[noreturn]] void usage(const char* what, const char* found, const char* wanted) {
    std::fprintf(stderr, "gpu-monitor: %s '%s': must be %s\n", what, found, wanted);
    std::exit(kUsage);
}

long seconds(const char* text) {
    char* end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > 86400)
        usage("--period", text, "a whole number of seconds from 1 to 86400");
    return value;
}

Options parse(int argc, char** argv) {
    static const option known[] = {{"period", required_argument, nullptr, 'p'},
                                   {"output", required_argument, nullptr, 'o'},
                                   {"help", no_argument, nullptr, 'h'},
                                   {nullptr, 0, nullptr, 0}};
    Options options;
    for (int letter; (letter = getopt_long(argc, argv, "p:o:h", known, nullptr)) != -1;) {
        switch (letter) {
        case 'p': options.period_seconds = seconds(optarg); break;
        case 'o':
            options.json = std::strcmp(optarg, "json") == 0;
            if (!options.json && std::strcmp(optarg, "table") != 0)
                usage("--output", optarg, "table or json");
            break;
        case 'h': options.help = true; break;
        default: std::exit(kUsage); // getopt has said why
        }
    }
    if (optind < argc) usage("argument", argv[optind], "one of the options of gpu-monitor -h");
    return options;
}

Nanos now() {
    timespec time = {};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<Nanos>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

Config config_or_exit() {
    const char* path = config_page_path();
    xpu_config_page made;
    GrantSource source = open_grant(path, made);
    Config config;
    if (source.state == PageState::kGood) source.state = await_config(*source.page, config);
    unmap(source.mapping, sizeof(xpu_config_page));
    if (source.state == PageState::kGood) return config;
    const PageState state = source.state;
    const bool denied = read_on_error(path) == OnError::kDenyNewMemory;
    if (state == PageState::kAbsent)
        std::fprintf(stderr,
                     "gpu-monitor: %s %s: this container has no slice of a GPU; a pod gets one by "
                     "asking for huawei.com/vgpu-number\n",
                     source.file, describe(state));
    else
        std::fprintf(stderr,
                     "gpu-monitor: %s %s: the node's gpu-device-plugin writes it, see its log; "
                     "until then processes that start get %s\n",
                     source.file, describe(state), denied ? "no device memory" : "no limits");
    std::exit(state == PageState::kAbsent ? kNoSlice : kBadConfig);
}

Mapping ledger_or_exit() {
    const char* path = ledger_page_path();
    const Mapping mapping = map_ledger(path, false);
    if (mapping.state == PageState::kGood) return mapping;
    std::fprintf(stderr,
                 "gpu-monitor: %s %s: without it usage is not known; it is made by the node's "
                 "gpu-device-plugin and mounted by the slice's CDI entry\n",
                 path, describe(mapping.state));
    std::exit(kNoLedger);
}

Reading read_ledger(const Mapping& mapping) {
    const auto& page = *static_cast<const xpu_ledger_page*>(mapping.base);
    Reading reading;
    reading.at = now();
    for (unsigned card = 0; card < XPU_MAX_CARDS; ++card)
        reading.charged_ns[card] = shared(page.card[card].charged_ns).load();
    for (unsigned index = 0; index < XPU_MAX_PROCESSES; ++index) {
        const xpu_process_slot& slot = page.process[index];
        const std::uint64_t owner = shared(slot.owner).load();
        if (owner == 0 || !slot_alive(mapping.fd, index)) continue;
        Reading::Process process;
        process.owner = owner;
        process.pid = slot.pid;
        for (unsigned card = 0; card < XPU_MAX_CARDS; ++card) {
            process.memory_bytes[card] = shared(slot.memory_bytes[card]).load();
            process.charged_ns[card] = shared(slot.charged_ns[card]).load();
        }
        reading.processes.push_back(process);
    }
    return reading;
}

// NVML's figure is of its last second or less, so it is asked for every second.
void wait(long period_seconds, CardWatch& watch) {
    for (long second = 0; second < period_seconds; ++second) {
        timespec left = {1, 0};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {
        }
        watch.sample();
    }
}

int run(int argc, char** argv) {
    const Options options = parse(argc, argv);
    if (options.help) {
        std::fputs(kHelp, stdout);
        return kOk;
    }
    CardWatch watch(config_or_exit()); // complain before the wait, not after it
    const Mapping ledger = ledger_or_exit();
    const Reading before = read_ledger(ledger);
    wait(options.period_seconds, watch);
    const Reading after = read_ledger(ledger);
    const auto devices = make_report(config_or_exit(), watch.views(), before, after);
    const std::string text =
        options.json ? as_json(devices, after.at - before.at) : as_table(devices);
    std::fputs(text.c_str(), stdout);
    return kOk;
}

} // namespace
} // namespace xpu::monitor

int main(int argc, char** argv) { return xpu::monitor::run(argc, argv); }
