/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of NVML's ABI this library touches, in our own words: types and signatures are facts of
 * the ABI, NVIDIA's header is not needed to build. tests/test_nvml_symbols.py compares with it.
 */
#ifndef XPU_CUDA_NVML_H
#define XPU_CUDA_NVML_H

#include <stdint.h>

extern "C" {

typedef int nvmlReturn_t;
typedef struct nvmlDevice_st* nvmlDevice_t;

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_FUNCTION_NOT_FOUND = 13,
};

typedef struct nvmlMemory_st {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct nvmlMemory_v2_st {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct nvmlUtilization_st {
    unsigned int gpu, memory;
} nvmlUtilization_t;

typedef struct nvmlProcessInfo_v1_st {
    unsigned int pid;
    unsigned long long usedGpuMemory;
} nvmlProcessInfo_v1_t;

typedef struct nvmlProcessInfo_v2_st {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_v2_t, nvmlProcessInfo_t;

typedef struct nvmlProcessDetail_v1_st {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
    unsigned long long usedGpuCcProtectedMemory;
} nvmlProcessDetail_v1_t;

typedef struct nvmlProcessDetailList_v1_st {
    unsigned int version;
    unsigned int mode; /* 0 compute, 1 graphics, 2 MPS */
    unsigned int numProcArrayEntries;
    nvmlProcessDetail_v1_t* procArray;
} nvmlProcessDetailList_t;

typedef struct nvmlProcessUtilizationSample_st {
    unsigned int pid;
    unsigned long long timeStamp;
    unsigned int smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;

typedef struct nvmlProcessUtilizationInfo_v1_st {
    unsigned long long timeStamp;
    unsigned int pid;
    unsigned int smUtil, memUtil, encUtil, decUtil, jpgUtil, ofaUtil;
} nvmlProcessUtilizationInfo_v1_t;

typedef struct nvmlProcessesUtilizationInfo_v1_st {
    unsigned int version;
    unsigned int processSamplesCount;
    unsigned long long lastSeenTimeStamp;
    nvmlProcessUtilizationInfo_v1_t* procUtilArray;
} nvmlProcessesUtilizationInfo_t;

typedef union nvmlValue_st {
    double dVal;
    unsigned long long ullVal;
    unsigned int uiVal;
} nvmlValue_t;

typedef struct nvmlSample_st {
    unsigned long long timeStamp;
    nvmlValue_t sampleValue;
} nvmlSample_t;

typedef int nvmlSamplingType_t;
typedef int nvmlValueType_t;
enum { NVML_GPU_UTILIZATION_SAMPLES = 1, NVML_MEMORY_UTILIZATION_SAMPLES = 2 };
enum { NVML_VALUE_TYPE_UNSIGNED_INT = 1 };

typedef struct nvmlGpuDynamicPstatesInfo_st {
    unsigned int flags;
    struct {
        unsigned int bIsPresent, percentage, incThreshold, decThreshold;
    } utilization[8]; /* 0 the processors, 1 the memory */
} nvmlGpuDynamicPstatesInfo_t;

#define XPU_NVML_STRUCT(type, version) ((unsigned int)(sizeof(type) | ((version) << 24u)))

/* Called, never defined here. */
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char* uuid, unsigned int size);

/* Defined here: the symbols applications find instead of the driver's. */
#pragma GCC visibility push(default)

nvmlReturn_t nvmlInit(void);
nvmlReturn_t nvmlInit_v2(void);
nvmlReturn_t nvmlInitWithFlags(unsigned int flags);

nvmlReturn_t nvmlDeviceGetCount(unsigned int* count);
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int* count);
nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const void* uuid, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetHandleBySerial(const char* serial, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* address, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* address, nvmlDevice_t* device);
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int* index);

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory);
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* memory);

#define XPU_NVML_LIST(type) nvmlDevice_t device, unsigned int *count, type *infos
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(XPU_NVML_LIST(nvmlProcessInfo_v1_t));
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(XPU_NVML_LIST(nvmlProcessInfo_v2_t));
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(XPU_NVML_LIST(nvmlProcessInfo_t));
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(XPU_NVML_LIST(nvmlProcessInfo_v1_t));
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(XPU_NVML_LIST(nvmlProcessInfo_v2_t));
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(XPU_NVML_LIST(nvmlProcessInfo_t));
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses(XPU_NVML_LIST(nvmlProcessInfo_v1_t));
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v2(XPU_NVML_LIST(nvmlProcessInfo_v2_t));
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(XPU_NVML_LIST(nvmlProcessInfo_t));
nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                   nvmlProcessDetailList_t* list);
nvmlReturn_t nvmlDeviceGetAccountingPids(XPU_NVML_LIST(unsigned int));
nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned int pid, void* stats);
nvmlReturn_t nvmlDeviceGetEncoderSessions(XPU_NVML_LIST(void));
nvmlReturn_t nvmlDeviceGetFBCSessions(XPU_NVML_LIST(void));

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* rates);
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t* samples,
                                             unsigned int* count, unsigned long long last_seen);
nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                   nvmlProcessesUtilizationInfo_t* info);
nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
                                  unsigned long long last_seen, nvmlValueType_t* value_type,
                                  unsigned int* count, nvmlSample_t* samples);
nvmlReturn_t nvmlDeviceGetDynamicPstatesInfo(nvmlDevice_t device,
                                             nvmlGpuDynamicPstatesInfo_t* info);

#pragma GCC visibility pop

} /* extern "C" */
#endif
