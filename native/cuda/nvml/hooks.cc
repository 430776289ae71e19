// SPDX-License-Identifier: Apache-2.0
//
// What NVML tells the application. Each function asks the driver first, or lets it judge the
// arguments; where the device is a card of our slice the slice is shown in its place. Only the
// newest version of a driver's function is called where versions differ in nothing but name: the
// driver's older ones may call the newer through us.
#include <algorithm>
#include <ctime>

#include "view.h"

namespace xpu::nvml {
namespace {

constexpr unsigned kNoInstance = 0xffffffffu; // not a MIG device

template <typename Function, typename... Arguments>
nvmlReturn_t initialise(Function function, Arguments... arguments) noexcept {
    const nvmlReturn_t result = call(function, arguments...);
    if (result == NVML_SUCCESS) (void)view.active(); // the first reading
    return result;
}

// --- which cards there are -------------------------------------------------------------------

// Calls visit(position, device) for the cards of the slice, in the driver's order, until it says
// stop; returns how many were visited. The driver doesn't count a slice's MIG instance among the
// cards, but finds it by its name; no slice has more than one.
template <typename Visit>
unsigned each_card(Visit visit) noexcept {
    unsigned all = 0, shown = 0;
    if (call(real().nvmlDeviceGetCount_v2, &all) != NVML_SUCCESS) return 0;
    for (unsigned index = 0; index < all; ++index) {
        nvmlDevice_t device = nullptr;
        const nvmlReturn_t got = call(real().nvmlDeviceGetHandleByIndex_v2, index, &device);
        if (got != NVML_SUCCESS || !view.shows(device)) continue;
        if (!visit(shown++, device)) return shown;
    }
    nvmlDevice_t instance = nullptr;
    if (char uuid[kUuidText]; shown == 0 && view.instance(uuid) &&
                              call(real().nvmlDeviceGetHandleByUUID, uuid, &instance) == NVML_SUCCESS)
        (void)visit(shown++, instance);
    return shown;
}

unsigned cards_shown() noexcept {
    return each_card([](unsigned, nvmlDevice_t) { return true; });
}

// A slice none of whose cards is here limits nothing, so it hides nothing either.
bool hides_cards() noexcept { return view.active() && cards_shown() > 0; }

nvmlReturn_t count_cards(unsigned* count) noexcept {
    const nvmlReturn_t result = call(real().nvmlDeviceGetCount_v2, count);
    if (result == NVML_SUCCESS && hides_cards()) *count = cards_shown();
    return result;
}

nvmlReturn_t card_by_index(unsigned index, nvmlDevice_t* device) noexcept {
    if (device == nullptr || !hides_cards())
        return call(real().nvmlDeviceGetHandleByIndex_v2, index, device);
    nvmlReturn_t result = NVML_ERROR_INVALID_ARGUMENT;
    each_card([&](unsigned position, nvmlDevice_t candidate) {
        if (position != index) return true;
        *device = candidate;
        result = NVML_SUCCESS;
        return false;
    });
    return result;
}

template <typename Function, typename Key>
nvmlReturn_t card_by(Function function, Key key, nvmlDevice_t* device) noexcept {
    const nvmlReturn_t result = call(function, key, device);
    if (result != NVML_SUCCESS || !hides_cards() || view.shows(*device)) return result;
    *device = nullptr;
    return NVML_ERROR_NOT_FOUND;
}

// --- processes --------------------------------------------------------------------------------

void fill(nvmlProcessInfo_v1_t& info, const Usage::Process& process) noexcept {
    info = {process.pid, process.memory_bytes};
}
void fill(nvmlProcessInfo_v2_t& info, const Usage::Process& process) noexcept {
    info = {process.pid, process.memory_bytes, kNoInstance, kNoInstance};
}
void fill(nvmlProcessDetail_v1_t& info, const Usage::Process& process) noexcept {
    info = {process.pid, process.memory_bytes, kNoInstance, kNoInstance, 0};
}

// The protocol of NVML's lists: too small a buffer is an error that says how much is needed.
template <typename Info>
nvmlReturn_t give_processes(const Usage& usage, unsigned* count, Info* infos) noexcept {
    const unsigned room = *count;
    *count = usage.processes;
    if (usage.processes > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    if (usage.processes > 0 && infos == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned index = 0; index < usage.processes; ++index)
        fill(infos[index], usage.process[index]);
    return NVML_SUCCESS;
}

// All that use the card are listed as computing, also behind an MPS server.
template <typename Function, typename Info>
nvmlReturn_t computing(Function function, nvmlDevice_t device, unsigned* count,
                       Info* infos) noexcept {
    const int card = count == nullptr || function == nullptr ? kNoCard : view.card_of(device);
    if (card == kNoCard) return call(function, device, count, infos);
    Usage usage;
    view.processes(card, usage);
    return give_processes(usage, count, infos);
}

// What belongs to other users of the card is not shown, and the ledger knows of none of ours.
template <typename Function, typename Info>
nvmlReturn_t none(Function function, nvmlDevice_t device, unsigned* count, Info* infos) noexcept {
    if (count == nullptr || function == nullptr || view.card_of(device) == kNoCard)
        return call(function, device, count, infos);
    *count = 0;
    return NVML_SUCCESS;
}

// --- utilisation -------------------------------------------------------------------------------

int measured_card(nvmlDevice_t device) noexcept {
    const int card = view.card_of(device);
    return card != kNoCard && view.measures(card) ? card : kNoCard;
}

// NVML's times are of the wall clock, ours are not.
Nanos wall_offset() noexcept {
    timespec now = {};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<Nanos>(now.tv_sec) * 1'000'000'000 + now.tv_nsec - monotonic_now();
}

Nanos monotonic_of(unsigned long long wall_us) noexcept {
    constexpr unsigned long long most = 1ull << 53; // more would overflow below, and is no date
    if (wall_us == 0) return 0;
    return std::max<Nanos>(static_cast<Nanos>(std::min(wall_us, most)) * 1000 - wall_offset(), 1);
}

unsigned long long wall_us_of(Nanos monotonic) noexcept {
    return static_cast<unsigned long long>((monotonic + wall_offset()) / 1000);
}

unsigned busy_processes(const Usage& usage) noexcept {
    unsigned busy = 0;
    for (unsigned index = 0; index < usage.processes; ++index) busy += usage.process[index].busy;
    return busy;
}

// As the driver does, only those that were busy are given, and nobody twice for the same time.
template <typename Sample, typename Fill>
nvmlReturn_t give_samples(const Usage& usage, unsigned* count, Sample* samples,
                          Fill fill_sample) noexcept {
    const unsigned busy = busy_processes(usage);
    if (busy == 0) return NVML_ERROR_NOT_FOUND;
    const unsigned room = *count;
    *count = busy;
    if (samples == nullptr || busy > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    const unsigned long long time = wall_us_of(usage.until);
    unsigned next = 0;
    for (unsigned index = 0; index < usage.processes; ++index) {
        if (usage.process[index].busy) fill_sample(samples[next++], usage.process[index], time);
    }
    return NVML_SUCCESS;
}

// A question for the size alone must not use up the samples.
bool sized_only(unsigned count, const void* samples) noexcept {
    return count == 0 || samples == nullptr;
}

template <typename Sample, typename Fill>
nvmlReturn_t process_samples(int card, Nanos since, unsigned* count, Sample* samples,
                             Fill fill_sample) noexcept {
    Usage usage;
    if (sized_only(*count, samples)) {
        view.processes(card, usage);
        *count = std::max(usage.processes, 1u);
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    if (!view.usage(card, since, usage)) return NVML_ERROR_NOT_FOUND;
    return give_samples(usage, count, samples, fill_sample);
}

// The slice's memory in place of the card's, in either of NVML's forms; false where there is no quota.
template <typename Memory>
bool show_slice(nvmlDevice_t device, Memory& memory) noexcept {
    const int card = view.card_of(device);
    std::uint64_t quota = 0, used = 0;
    if (card == kNoCard || !view.memory(card, quota, used)) return false;
    memory.total = std::min<std::uint64_t>(memory.total, quota);
    memory.used = std::min<std::uint64_t>(used, memory.total);
    memory.free = memory.total - memory.used;
    return true;
}

} // namespace
} // namespace xpu::nvml

using namespace xpu;
using namespace xpu::nvml;

nvmlReturn_t nvmlInit(void) { return initialise(real().nvmlInit); }
nvmlReturn_t nvmlInit_v2(void) { return initialise(real().nvmlInit_v2); }
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    return initialise(real().nvmlInitWithFlags, flags);
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int* count) { return count_cards(count); }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int* count) { return count_cards(count); }

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t* device) {
    return card_by_index(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t* device) {
    return card_by_index(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device) {
    return card_by(real().nvmlDeviceGetHandleByUUID, uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const void* uuid, nvmlDevice_t* device) {
    return card_by(real().nvmlDeviceGetHandleByUUIDV, uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char* serial, nvmlDevice_t* device) {
    return card_by(real().nvmlDeviceGetHandleBySerial, serial, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* address, nvmlDevice_t* device) {
    return card_by(real().nvmlDeviceGetHandleByPciBusId_v2, address, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* address, nvmlDevice_t* device) {
    return card_by(real().nvmlDeviceGetHandleByPciBusId_v2, address, device);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int* index) {
    const nvmlReturn_t result = call(real().nvmlDeviceGetIndex, device, index);
    if (result != NVML_SUCCESS || !hides_cards()) return result;
    each_card([&](unsigned position, nvmlDevice_t candidate) {
        if (candidate == device) *index = position;
        return candidate != device;
    });
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory) {
    const nvmlReturn_t result = call(real().nvmlDeviceGetMemoryInfo, device, memory);
    if (result == NVML_SUCCESS) show_slice(device, *memory);
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* memory) {
    const nvmlReturn_t result = call(real().nvmlDeviceGetMemoryInfo_v2, device, memory);
    // What the driver keeps for itself is not taken out of a slice.
    if (result == NVML_SUCCESS && show_slice(device, *memory)) memory->reserved = 0;
    return result;
}

#define XPU_DEFINE_LIST(name, how, type)                                                           \
    nvmlReturn_t name(XPU_NVML_LIST(type)) { return how(real().name, device, count, infos); }
XPU_DEFINE_LIST(nvmlDeviceGetComputeRunningProcesses, computing, nvmlProcessInfo_v1_t)
XPU_DEFINE_LIST(nvmlDeviceGetComputeRunningProcesses_v2, computing, nvmlProcessInfo_v2_t)
XPU_DEFINE_LIST(nvmlDeviceGetComputeRunningProcesses_v3, computing, nvmlProcessInfo_t)
XPU_DEFINE_LIST(nvmlDeviceGetGraphicsRunningProcesses, none, nvmlProcessInfo_v1_t)
XPU_DEFINE_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, none, nvmlProcessInfo_v2_t)
XPU_DEFINE_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, none, nvmlProcessInfo_t)
XPU_DEFINE_LIST(nvmlDeviceGetMPSComputeRunningProcesses, none, nvmlProcessInfo_v1_t)
XPU_DEFINE_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, none, nvmlProcessInfo_v2_t)
XPU_DEFINE_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, none, nvmlProcessInfo_t)
XPU_DEFINE_LIST(nvmlDeviceGetAccountingPids, none, unsigned int)
XPU_DEFINE_LIST(nvmlDeviceGetEncoderSessions, none, void)
XPU_DEFINE_LIST(nvmlDeviceGetFBCSessions, none, void)
#undef XPU_DEFINE_LIST

nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned int pid, void* stats) {
    if (stats == nullptr || view.card_of(device) == kNoCard)
        return call(real().nvmlDeviceGetAccountingStats, device, pid, stats);
    return NVML_ERROR_NOT_FOUND; // pids of the host, which mean nothing here
}

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                   nvmlProcessDetailList_t* list) {
    const auto function = real().nvmlDeviceGetRunningProcessDetailList;
    const bool known =
        list != nullptr && list->version == XPU_NVML_STRUCT(nvmlProcessDetailList_t, 1);
    const int card = known && function != nullptr ? view.card_of(device) : kNoCard;
    if (card == kNoCard) return call(function, device, list);
    Usage usage;
    if (list->mode == 0) view.processes(card, usage);
    return give_processes(usage, &list->numProcArrayEntries, list->procArray);
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* rates) {
    const nvmlReturn_t result = call(real().nvmlDeviceGetUtilizationRates, device, rates);
    const int card = result == NVML_SUCCESS ? measured_card(device) : kNoCard;
    Usage usage;
    if (card == kNoCard || !view.usage(card, 0, usage)) return result;
    rates->gpu = usage.percent;
    rates->memory = std::min(rates->memory, usage.percent); // ours is busy at most while we run
    return result;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t* samples,
                                             unsigned int* count, unsigned long long last_seen) {
    const auto function = real().nvmlDeviceGetProcessUtilization;
    const int card = count == nullptr || function == nullptr ? kNoCard : view.card_of(device);
    if (card == kNoCard) return call(function, device, samples, count, last_seen);
    if (!view.measures(card)) return NVML_ERROR_NOT_FOUND;
    return process_samples(card, monotonic_of(last_seen), count, samples,
                           [](auto& sample, const Usage::Process& process, auto time) {
                               sample = {process.pid, time, process.percent, 0, 0, 0};
                           });
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                   nvmlProcessesUtilizationInfo_t* info) {
    const auto function = real().nvmlDeviceGetProcessesUtilizationInfo;
    const bool known =
        info != nullptr && info->version == XPU_NVML_STRUCT(nvmlProcessesUtilizationInfo_t, 1);
    const int card = known && function != nullptr ? view.card_of(device) : kNoCard;
    if (card == kNoCard) return call(function, device, info);
    if (!view.measures(card)) return NVML_ERROR_NOT_FOUND;
    return process_samples(card, monotonic_of(info->lastSeenTimeStamp),
                           &info->processSamplesCount, info->procUtilArray,
                           [](auto& sample, const Usage::Process& process, auto time) {
                               sample = {time, process.pid, process.percent, 0, 0, 0, 0, 0};
                           });
}

// One sample, of the last stretch: the driver's own buffer is of the whole card.
nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
                                  unsigned long long last_seen, nvmlValueType_t* value_type,
                                  unsigned int* count, nvmlSample_t* samples) {
    const auto function = real().nvmlDeviceGetSamples;
    const bool ours =
        type == NVML_GPU_UTILIZATION_SAMPLES || type == NVML_MEMORY_UTILIZATION_SAMPLES;
    const bool complete = value_type != nullptr && count != nullptr && function != nullptr;
    const int card = ours && complete ? measured_card(device) : kNoCard;
    if (card == kNoCard) return call(function, device, type, last_seen, value_type, count, samples);
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (samples == nullptr || *count == 0) {
        *count = 1;
        return samples == nullptr ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
    }
    // How busy our share of the memory's time was, nothing tells.
    if (type == NVML_MEMORY_UTILIZATION_SAMPLES) return NVML_ERROR_NOT_FOUND;
    Usage usage;
    if (!view.usage(card, monotonic_of(last_seen), usage)) return NVML_ERROR_NOT_FOUND;
    *count = 1;
    samples[0].timeStamp = wall_us_of(usage.until);
    samples[0].sampleValue.ullVal = 0;
    samples[0].sampleValue.uiVal = usage.percent;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDynamicPstatesInfo(nvmlDevice_t device,
                                             nvmlGpuDynamicPstatesInfo_t* info) {
    const nvmlReturn_t result = call(real().nvmlDeviceGetDynamicPstatesInfo, device, info);
    const int card = result == NVML_SUCCESS ? measured_card(device) : kNoCard;
    Usage usage;
    if (card == kNoCard || !view.usage(card, 0, usage)) return result;
    info->utilization[0].percentage = usage.percent;
    info->utilization[1].percentage = std::min(info->utilization[1].percentage, usage.percent);
    return result;
}
