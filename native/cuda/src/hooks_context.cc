// SPDX-License-Identifier: Apache-2.0
//
// Contexts begin and end: their own memory, and what ends with them.
#include "call.h"
#include "contexts.h"
#include "meter.h"

namespace xpu {
namespace {

template <typename Function, typename... Arguments>
CUresult create(Function function, CUdevice device, CUcontext* context,
                Arguments... arguments) noexcept {
    if (function == nullptr || context == nullptr || !guard.active())
        return call(function, context, arguments...);
    const ContextCharge charged = charge_context(device);
    if (!charged.granted) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = function(context, arguments...);
    if (result == CUDA_SUCCESS) context_began(*context, charged);
    else context_not_made(charged);
    return result;
}

template <typename Function>
CUresult destroy(Function function, CUcontext context) noexcept {
    const bool active = guard.active();
    if (active) settle_meter(context);
    const CUresult result = call(function, context);
    if (active && result == CUDA_SUCCESS) context_ended(context);
    return result;
}

template <typename Function>
CUresult release_primary(Function function, CUdevice device) noexcept {
    const bool active = guard.active();
    if (active) settle_meter(primary_context(device));
    const CUresult result = call(function, device);
    if (active && result == CUDA_SUCCESS) primary_released(device);
    return result;
}

CUresult set_limit(int limit, std::size_t value) noexcept {
    return call(real.cuCtxSetLimit, limit, value);
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuCtxCreate(CUcontext* context, unsigned int flags, CUdevice device) {
    return create(real.cuCtxCreate, device, context, flags, device);
}

CUresult cuCtxCreate_v2(CUcontext* context, unsigned int flags, CUdevice device) {
    return create(real.cuCtxCreate_v2, device, context, flags, device);
}

CUresult cuCtxCreate_v3(CUcontext* context, void* affinity, int count, unsigned int flags,
                        CUdevice device) {
    return create(real.cuCtxCreate_v3, device, context, affinity, count, flags, device);
}

CUresult cuCtxCreate_v4(CUcontext* context, void* parameters, unsigned int flags,
                        CUdevice device) {
    return create(real.cuCtxCreate_v4, device, context, parameters, flags, device);
}

CUresult cuCtxDestroy(CUcontext context) { return destroy(real.cuCtxDestroy, context); }

CUresult cuCtxDestroy_v2(CUcontext context) { return destroy(real.cuCtxDestroy_v2, context); }

CUresult cuCtxAttach(CUcontext* context, unsigned int flags) {
    const bool active = guard.active();
    const CUresult result = call(real.cuCtxAttach, context, flags);
    if (active && result == CUDA_SUCCESS && context != nullptr) context_attached(*context);
    return result;
}

CUresult cuCtxDetach(CUcontext context) {
    const bool active = guard.active();
    if (active) settle_meter(context);
    const CUresult result = call(real.cuCtxDetach, context);
    if (active && result == CUDA_SUCCESS && context_detached(context)) context_ended(context);
    return result;
}

CUresult cuCtxSetLimit(int limit, size_t value) {
    if (!guard.active()) return set_limit(limit, value);
    return change_limit(limit, value, set_limit);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    if (!guard.active() || context == nullptr)
        return call(real.cuDevicePrimaryCtxRetain, context, device);
    if (!primary_needs_room(device)) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = call(real.cuDevicePrimaryCtxRetain, context, device);
    primary_used(device, result == CUDA_SUCCESS ? *context : nullptr, result);
    return result;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    return release_primary(real.cuDevicePrimaryCtxRelease, device);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return release_primary(real.cuDevicePrimaryCtxRelease_v2, device);
}

CUresult cuDevicePrimaryCtxReset(CUdevice device) {
    return release_primary(real.cuDevicePrimaryCtxReset, device);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
    return release_primary(real.cuDevicePrimaryCtxReset_v2, device);
}

// A green context is a part of the primary one and keeps it as long as it lives.
CUresult cuGreenCtxCreate(CUgreenCtx* context, CUdevResourceDesc description, CUdevice device,
                          unsigned int flags) {
    if (!guard.active()) return call(real.cuGreenCtxCreate, context, description, device, flags);
    if (!primary_needs_room(device)) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = call(real.cuGreenCtxCreate, context, description, device, flags);
    primary_used(device, nullptr, result);
    return result;
}

CUresult cuGreenCtxDestroy(CUgreenCtx context) {
    const bool active = guard.active();
    const CUresult result = call(real.cuGreenCtxDestroy, context);
    if (active && result == CUDA_SUCCESS) primaries_released();
    return result;
}
