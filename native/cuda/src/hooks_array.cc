// SPDX-License-Identifier: Apache-2.0
//
// Arrays. Only the driver knows how it lays one out, and it tells the size of arrays that are mapped
// later, alone. So a twin of the wanted array is made that way, which takes no memory, asked and
// destroyed; then the exact size is charged and the array made. Where that is impossible (an older
// driver, a format that can't be mapped later) an upper bound is charged and stays charged.
#include <algorithm>

#include "allocations.h"
#include "call.h"
#include "charges.h"
#include "physical.h"

namespace xpu {
namespace {

constexpr unsigned kBacksNothing = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;
constexpr std::uint64_t kRowUnit = 512;
constexpr std::uint64_t kRowsUnit = 8; // tiles of the hardware are 64 bytes by 8 rows
constexpr std::uint64_t kWidestChannel = 4;
constexpr std::uint64_t kWidestTexel = 16;

// Bytes of a texel, or more where the format is not one of the plain ones.
std::uint64_t texel_bytes(unsigned format, unsigned channels) noexcept {
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8: return channels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF: return channels * std::uint64_t{2};
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT: return channels * kWidestChannel;
    default: return kWidestTexel;
    }
}

std::uint64_t product(std::uint64_t a, std::uint64_t b) noexcept {
    std::uint64_t both = 0;
    return __builtin_mul_overflow(a, b, &both) ? ~std::uint64_t{0} >> 1 : both;
}

std::uint64_t most_of_level(const CUDA_ARRAY3D_DESCRIPTOR& shape) noexcept {
    const std::uint64_t row =
        rounded_up(product(shape.Width, texel_bytes(shape.Format, shape.NumChannels)), kRowUnit);
    const std::uint64_t rows = shape.Height > 1 ? rounded_up(shape.Height, kRowsUnit) : 1;
    return product(product(row, rows), std::max<std::uint64_t>(shape.Depth, 1));
}

std::uint64_t most_of_array(const CUDA_ARRAY3D_DESCRIPTOR& shape, unsigned levels) noexcept {
    CUDA_ARRAY3D_DESCRIPTOR level = shape;
    const bool layered = (shape.Flags & CUDA_ARRAY3D_LAYERED) != 0;
    std::uint64_t sum = 0;
    for (unsigned number = 0; number < std::min(levels, 64u); ++number) {
        const std::uint64_t bytes = most_of_level(level);
        const std::uint64_t apart = bytes < kSmall ? bytes : most_of(bytes); // should it lie alone
        if (__builtin_add_overflow(sum, apart, &sum)) return ~std::uint64_t{0} >> 1;
        if (level.Width <= 1 && level.Height <= 1 && (layered || level.Depth <= 1)) break;
        level.Width = std::max<std::size_t>(level.Width / 2, 1);
        level.Height = std::max<std::size_t>(level.Height / 2, level.Height != 0);
        if (!layered) level.Depth = std::max<std::size_t>(level.Depth / 2, level.Depth != 0);
    }
    return sum;
}

// A twin of `shape` that takes no memory, asked for its size by `ask`; 0 where there is none.
template <typename Handle, typename Create, typename Ask, typename Destroy>
std::uint64_t size_of_twin(CUDA_ARRAY3D_DESCRIPTOR shape, Create create, Ask ask,
                           Destroy destroy) noexcept {
    if (ask == nullptr || destroy == nullptr) return 0;
    shape.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
    Handle twin = nullptr;
    if (create(&twin, &shape) != CUDA_SUCCESS) return 0;
    CUDA_ARRAY_MEMORY_REQUIREMENTS found = {};
    const CUresult result = ask(&found, twin, current_device());
    (void)destroy(twin);
    return result == CUDA_SUCCESS ? found.size : 0;
}

std::uint64_t size_of_array(const CUDA_ARRAY3D_DESCRIPTOR& shape) noexcept {
    const std::uint64_t exact = size_of_twin<CUarray>(
        shape, [](auto... a) { return call(real.cuArray3DCreate_v2, a...); },
        real.cuArrayGetMemoryRequirements, real.cuArrayDestroy);
    return exact != 0 ? exact : most_of_array(shape, 1);
}

std::uint64_t size_of_mipmap(const CUDA_ARRAY3D_DESCRIPTOR& shape, unsigned levels) noexcept {
    const std::uint64_t exact = size_of_twin<CUmipmappedArray>(
        shape, [=](auto... a) { return call(real.cuMipmappedArrayCreate, a..., levels); },
        real.cuMipmappedArrayGetMemoryRequirements, real.cuMipmappedArrayDestroy);
    return exact != 0 ? exact : most_of_array(shape, levels);
}

template <typename Handle, typename Create, typename Size, typename Destroy>
CUresult create_array(Handle* handle, const CUDA_ARRAY3D_DESCRIPTOR& shape, Create create, Size size,
                      Destroy destroy) noexcept {
    const bool free_of_charge = (shape.Flags & kBacksNothing) != 0;
    const int card = free_of_charge ? kNoCard : current_charged_card();
    if (card == kNoCard) return create();
    const std::uint64_t bytes = size();
    const std::uint64_t most = most_of(bytes);
    if (!charge(card, most)) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = create();
    if (result != CUDA_SUCCESS) {
        refund(card, most);
        return result;
    }
    if (keep_array(reinterpret_cast<std::uintptr_t>(*handle), bytes, card, most)) return result;
    (void)call(destroy, *handle);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

template <typename Function, typename Descriptor>
CUresult create_plain(Function function, CUarray* handle, const Descriptor* wanted,
                      const CUDA_ARRAY3D_DESCRIPTOR& shape) noexcept {
    return create_array(
        handle, shape, [=] { return call(function, handle, wanted); },
        [&] { return size_of_array(shape); }, real.cuArrayDestroy);
}

// A sparse array keeps what was mapped into it until it is gone.
template <typename Function, typename Handle>
CUresult destroy_array(Function function, Handle handle) noexcept {
    if (!guard.active()) return call(function, handle);
    const std::uint64_t key = reinterpret_cast<std::uintptr_t>(handle);
    const Pins pinned = take_pins(key);
    const CUresult result =
        free_kept(arrays, key, refund_array, [=] { return call(function, handle); });
    if (result == CUDA_SUCCESS) drop_pins(pinned);
    else put_pins_back(pinned);
    return result;
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuArrayCreate(CUarray* handle, const CUDA_ARRAY_DESCRIPTOR_v1* wanted) {
    if (!guard.active() || handle == nullptr || wanted == nullptr)
        return call(real.cuArrayCreate, handle, wanted);
    return create_plain(real.cuArrayCreate, handle, wanted,
                        {wanted->Width, wanted->Height, 0, wanted->Format, wanted->NumChannels, 0});
}

CUresult cuArrayCreate_v2(CUarray* handle, const CUDA_ARRAY_DESCRIPTOR* wanted) {
    if (!guard.active() || handle == nullptr || wanted == nullptr)
        return call(real.cuArrayCreate_v2, handle, wanted);
    return create_plain(real.cuArrayCreate_v2, handle, wanted,
                        {wanted->Width, wanted->Height, 0, wanted->Format, wanted->NumChannels, 0});
}

CUresult cuArray3DCreate(CUarray* handle, const CUDA_ARRAY3D_DESCRIPTOR_v1* wanted) {
    if (!guard.active() || handle == nullptr || wanted == nullptr)
        return call(real.cuArray3DCreate, handle, wanted);
    return create_plain(real.cuArray3DCreate, handle, wanted,
                        {wanted->Width, wanted->Height, wanted->Depth, wanted->Format,
                         wanted->NumChannels, wanted->Flags});
}

CUresult cuArray3DCreate_v2(CUarray* handle, const CUDA_ARRAY3D_DESCRIPTOR* wanted) {
    if (!guard.active() || handle == nullptr || wanted == nullptr)
        return call(real.cuArray3DCreate_v2, handle, wanted);
    return create_plain(real.cuArray3DCreate_v2, handle, wanted, *wanted);
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray* handle, const CUDA_ARRAY3D_DESCRIPTOR* wanted,
                                unsigned int levels) {
    const auto create = [=] { return call(real.cuMipmappedArrayCreate, handle, wanted, levels); };
    if (!guard.active() || handle == nullptr || wanted == nullptr) return create();
    return create_array(
        handle, *wanted, create, [=] { return size_of_mipmap(*wanted, levels); },
        real.cuMipmappedArrayDestroy);
}

CUresult cuArrayDestroy(CUarray handle) { return destroy_array(real.cuArrayDestroy, handle); }

CUresult cuMipmappedArrayDestroy(CUmipmappedArray handle) {
    return destroy_array(real.cuMipmappedArrayDestroy, handle);
}
