/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The part of CANN's runtime (libruntime.so) that the simulator serves, by the names and signatures of the
 * public headers. Handles are opaque here. What starts work is in xpu_ascend/launches.def.
 */
#ifndef SIM_ACL_RUNTIME_H
#define SIM_ACL_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t rtError_t;

#define RT_ERROR_NONE 0
#define ACL_ERROR_RT_PARAM_INVALID 107000
#define ACL_ERROR_RT_INVALID_DEVICEID 107001
#define ACL_ERROR_RT_CONTEXT_NULL 107002
#define ACL_ERROR_RT_STREAM_CONTEXT 107003
#define ACL_ERROR_RT_INVALID_HANDLE 107017
#define ACL_ERROR_RT_MEMORY_ALLOCATION 207001
#define ACL_ERROR_RT_DRV_INTERNAL_ERROR 507899
#define ACL_ERROR_RT_STREAM_SYNC_TIMEOUT 507046
#define ACL_ERROR_RT_EVENT_SYNC_TIMEOUT 107019

/* What rtArgsEx_t begins with; the rest says where in it pointers lie. */
typedef struct {
    void* args;
    void* hostInputInfoPtr;
    uint32_t argsSize;
} rtArgsExHead_t;

rtError_t rtInit(void);
rtError_t rtGetDeviceCount(int32_t* count);
rtError_t rtSetDevice(int32_t device);
rtError_t rtGetDevice(int32_t* device);
rtError_t rtDeviceReset(int32_t device);
rtError_t rtGetDevicePhyIdByIndex(uint32_t index, uint32_t* physical);
rtError_t rtDeviceSynchronize(void);
rtError_t rtCtxCreate(void** context, uint32_t flags, int32_t device);
rtError_t rtCtxDestroy(void* context);
rtError_t rtCtxSetCurrent(void* context);
rtError_t rtCtxGetCurrent(void** context);
rtError_t rtStreamCreate(void** stream, int32_t priority);
rtError_t rtStreamDestroy(void* stream);
rtError_t rtStreamSynchronize(void* stream);
rtError_t rtStreamSynchronizeWithTimeout(void* stream, int32_t milliseconds);
rtError_t rtStreamWaitEvent(void* stream, void* event);
rtError_t rtEventCreate(void** event);
rtError_t rtEventDestroy(void* event);
rtError_t rtEventRecord(void* event, void* stream);
rtError_t rtEventSynchronize(void* event);
rtError_t rtEventSynchronizeWithTimeout(void* event, int32_t milliseconds);
rtError_t rtEventQueryStatus(void* event, int32_t* status); /* 1: it has come */
rtError_t rtEventElapsedTime(float* milliseconds, void* start, void* end);
rtError_t rtMalloc(void** address, uint64_t size, uint32_t type, uint16_t module);
rtError_t rtMallocCached(void** address, uint64_t size, uint32_t type, uint16_t module);
rtError_t rtMallocManaged(void** address, uint64_t size, uint32_t type, uint16_t module);
rtError_t rtFree(void* address);
rtError_t rtDvppMalloc(void** address, uint64_t size, uint16_t module);
rtError_t rtDvppMallocWithFlag(void** address, uint64_t size, uint32_t flag, uint16_t module);
rtError_t rtDvppFree(void* address);
rtError_t rtMallocPhysical(void** handle, size_t size, void* properties, uint64_t flags);
rtError_t rtFreePhysical(void* handle);
rtError_t rtMemGetInfo(size_t* free_bytes, size_t* total);
rtError_t rtMemGetInfoEx(uint32_t kind, size_t* free_bytes, size_t* total);
rtError_t rtMemcpy(void* to, uint64_t most, const void* from, uint64_t size, uint32_t kind);
rtError_t rtMemcpyAsync(void* to, uint64_t most, const void* from, uint64_t size, uint32_t kind, void* stream);
rtError_t rtMemset(void* to, uint64_t most, uint32_t value, uint64_t size);

#ifdef __cplusplus
}
#endif
#endif
