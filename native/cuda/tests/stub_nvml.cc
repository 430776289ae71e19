// SPDX-License-Identifier: Apache-2.0
//
// An NVML of one page: two cards, of which the second is somebody else's, and on each a process of
// somebody else's that uses nearly all of it. It has functions the simulated NVML lacks.
#include <cstring>

#include "xpu_cuda/nvml.h"

struct nvmlDevice_st {
    const char* uuid;
};

namespace {

nvmlDevice_st cards[] = {{"GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"},
                         {"GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"}};
constexpr unsigned long long kTotal = 8ull << 30, kUsed = 7ull << 30;
constexpr unsigned kBusy = 77, kMemoryBusy = 66, kForeignPid = 4242;

bool known(nvmlDevice_t device) { return device == &cards[0] || device == &cards[1]; }

nvmlReturn_t one(nvmlDevice_t device, unsigned* count, void* rows, std::size_t size) {
    if (!known(device) || count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    const unsigned room = *count;
    *count = 1;
    if (room == 0) return NVML_ERROR_INSUFFICIENT_SIZE;
    std::memset(rows, 0, size);
    std::memcpy(rows, &kForeignPid, sizeof kForeignPid);
    return NVML_SUCCESS;
}

} // namespace

nvmlReturn_t nvmlInit() { return NVML_SUCCESS; }
nvmlReturn_t nvmlInit_v2() { return NVML_SUCCESS; }
nvmlReturn_t nvmlInitWithFlags(unsigned) { return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t* device) {
    if (index > 1 || device == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    *device = &cards[index];
    return NVML_SUCCESS;
}

extern "C" __attribute__((visibility("default"))) nvmlReturn_t nvmlDeviceGetUUID(
    nvmlDevice_t device, char* uuid, unsigned size) {
    if (!known(device)) return NVML_ERROR_INVALID_ARGUMENT;
    if (size < std::strlen(device->uuid) + 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    std::strcpy(uuid, device->uuid);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const void* uuid, nvmlDevice_t* device) {
    const char* text = static_cast<const char*>(uuid) + 8; // version, type, value
    for (nvmlDevice_st& card : cards) {
        if (std::strcmp(card.uuid, text) != 0) continue;
        *device = &card;
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory) {
    if (!known(device)) return NVML_ERROR_INVALID_ARGUMENT;
    *memory = {kTotal, kTotal - kUsed, kUsed};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* rates) {
    if (!known(device)) return NVML_ERROR_INVALID_ARGUMENT;
    *rates = {kBusy, kMemoryBusy};
    return NVML_SUCCESS;
}

#define LIST(name, type)                                                                           \
    nvmlReturn_t name(XPU_NVML_LIST(type)) { return one(device, count, infos, sizeof(type)); }
LIST(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t)
LIST(nvmlDeviceGetAccountingPids, unsigned)

nvmlReturn_t nvmlDeviceGetEncoderSessions(XPU_NVML_LIST(void)) { return one(device, count, infos, 4); }
nvmlReturn_t nvmlDeviceGetFBCSessions(XPU_NVML_LIST(void)) { return one(device, count, infos, 4); }

nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned, void*) {
    return known(device) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                   nvmlProcessDetailList_t* list) {
    if (list->version != XPU_NVML_STRUCT(nvmlProcessDetailList_t, 1)) return 25;
    return one(device, &list->numProcArrayEntries, list->procArray, sizeof *list->procArray);
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t* samples,
                                             unsigned* count, unsigned long long) {
    return one(device, count, samples, sizeof *samples);
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                   nvmlProcessesUtilizationInfo_t* info) {
    if (info->version != XPU_NVML_STRUCT(nvmlProcessesUtilizationInfo_t, 1)) return 25;
    return one(device, &info->processSamplesCount, info->procUtilArray, sizeof *info->procUtilArray);
}

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t, unsigned long long,
                                  nvmlValueType_t* type, unsigned* count, nvmlSample_t* samples) {
    if (!known(device)) return NVML_ERROR_INVALID_ARGUMENT;
    *type = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (samples != nullptr) samples[0] = {1, {}};
    if (samples != nullptr) samples[0].sampleValue.ullVal = kBusy;
    *count = samples != nullptr ? 1 : 100;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDynamicPstatesInfo(nvmlDevice_t device, nvmlGpuDynamicPstatesInfo_t* info) {
    if (!known(device)) return NVML_ERROR_INVALID_ARGUMENT;
    *info = {};
    info->utilization[0] = {1, kBusy, 0, 0};
    info->utilization[1] = {1, kMemoryBusy, 0, 0};
    return NVML_SUCCESS;
}
