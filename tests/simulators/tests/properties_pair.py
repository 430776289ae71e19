# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties of the driver on two equal cards that reach each other (see properties.py)."""

from __future__ import annotations

import ctypes
import sys

from simulators.tests.cudriver import PTR
from simulators.tests.properties import (
    INVALID_VALUE,
    MIB,
    SIZE,
    U64,
    Access,
    AllocationProperties,
    Driver,
    Location,
    collected,
    equal,
)

ALREADY_ENABLED, NOT_ENABLED = 704, 705
INVALID_DEVICE, NOT_SUPPORTED = 101, 801


class TeamProperties(ctypes.Structure):
    """CUmulticastObjectProp."""

    _fields_ = (
        ("devices", ctypes.c_uint),
        ("size", SIZE),
        ("handle_types", ctypes.c_ulonglong),
        ("flags", ctypes.c_ulonglong),
    )


def _context(cuda: Driver, device: int) -> PTR:
    context = PTR()
    cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return context


def _used(cuda: Driver, context: PTR) -> int:
    """Bytes in use of the card that a context is on."""
    cuda.call("cuCtxPushCurrent_v2", context)
    used = cuda.used()
    cuda.call("cuCtxPopCurrent_v2", None)
    return used


def _allocate_on(cuda: Driver, context: PTR, size: int) -> int:
    cuda.call("cuCtxPushCurrent_v2", context)
    address = cuda.allocate(size)
    cuda.call("cuCtxPopCurrent_v2", None)
    return address


def _memory(cuda: Driver, device: int, size: int) -> U64:
    handle = U64()
    how = AllocationProperties(type=1, location=Location(1, device))
    cuda.call("cuMemCreate", ctypes.byref(handle), SIZE(size), ctypes.byref(how), U64(0))
    return handle


def peers_are_enabled_once_and_disabled_once() -> None:
    cuda = Driver()
    can = ctypes.c_int()
    cuda.call("cuDeviceCanAccessPeer", ctypes.byref(can), 0, 1)
    equal(can.value, 1)
    cuda.call("cuDeviceCanAccessPeer", ctypes.byref(can), 0, 0)
    equal(can.value, 0)
    cuda.call("cuDeviceGetP2PAttribute", ctypes.byref(can), 2, 0, 1)
    equal(can.value, 1)
    other = _context(cuda, 1)
    equal(cuda.code("cuCtxDisablePeerAccess", other), NOT_ENABLED)
    cuda.call("cuCtxEnablePeerAccess", other, 0)
    equal(cuda.code("cuCtxEnablePeerAccess", other, 0), ALREADY_ENABLED)
    cuda.call("cuCtxDisablePeerAccess", other)
    equal(cuda.code("cuCtxDisablePeerAccess", other), NOT_ENABLED)
    cuda.call("cuDevicePrimaryCtxRelease_v2", 1)


def bytes_go_from_card_to_card() -> None:
    cuda = Driver()
    other, stream = _context(cuda, 1), cuda.stream()
    here, there = cuda.allocate(MIB), _allocate_on(cuda, other, MIB)
    cuda.call("cuMemsetD8_v2", U64(here), ctypes.c_ubyte(6), SIZE(MIB))
    size = SIZE(MIB)
    cuda.call("cuMemcpyPeer", U64(there), other, U64(here), cuda.context, size)
    cuda.call("cuMemsetD8_v2", U64(here), ctypes.c_ubyte(0), SIZE(MIB))
    cuda.call("cuMemcpyPeerAsync", U64(here), cuda.context, U64(there), other, size, stream)
    cuda.call("cuStreamSynchronize", stream)
    back = ctypes.create_string_buffer(4)
    cuda.call("cuMemcpyDtoH_v2", back, U64(here + MIB - 4), SIZE(4))
    equal(back.raw, b"\6" * 4)
    cuda.call("cuMemFree_v2", U64(there))
    cuda.call("cuDevicePrimaryCtxRelease_v2", 1)


def a_pool_says_which_cards_it_lets_in() -> None:
    cuda = Driver()
    pool, flags, one = cuda.default_pool(), ctypes.c_int(), Location(1, 1)
    cuda.call("cuMemPoolGetAccess", ctypes.byref(flags), pool, ctypes.byref(one))
    equal(flags.value, 0)
    access = Access(one, 3)
    cuda.call("cuMemPoolSetAccess", pool, ctypes.byref(access), SIZE(1))
    cuda.call("cuMemPoolGetAccess", ctypes.byref(flags), pool, ctypes.byref(one))
    equal(flags.value, 3)
    own = Access(Location(1, 0), 0)
    equal(cuda.code("cuMemPoolSetAccess", pool, ctypes.byref(own), SIZE(1)), INVALID_VALUE)


def a_team_keeps_the_memory_that_is_bound_to_it() -> None:
    cuda = Driver()
    granularity, team = SIZE(), U64()
    how = TeamProperties(2, 64 * MIB, 1, 0)
    code = cuda.code("cuMulticastGetGranularity", ctypes.byref(granularity), ctypes.byref(how), 0)
    if code == NOT_SUPPORTED:
        return
    equal(code, 0)
    other = _context(cuda, 1)
    step = granularity.value
    size = -(-64 * MIB // step) * step
    how.size = size
    before = [_used(cuda, cuda.context), _used(cuda, other)]
    cuda.call("cuMulticastCreate", ctypes.byref(team), ctypes.byref(how))
    members = [_memory(cuda, device, size) for device in (0, 1)]
    for device in (0, 1):
        cuda.call("cuMulticastAddDevice", team, device)
    assert cuda.code("cuMulticastAddDevice", team, 0) != 0, "each card is in it once"
    for member in members:
        cuda.call("cuMulticastBindMem", team, SIZE(0), member, SIZE(0), SIZE(size), U64(0))
        cuda.call("cuMemRelease", member)
    held = [_used(cuda, cuda.context), _used(cuda, other)]
    equal([one - two for one, two in zip(held, before, strict=True)], [size, size])
    address = U64()
    cuda.call("cuMemAddressReserve", ctypes.byref(address), SIZE(size), SIZE(step), U64(0), U64(0))
    cuda.call("cuMemMap", address, SIZE(size), SIZE(0), team, U64(0))
    access = (Access * 2)(Access(Location(1, 0), 3), Access(Location(1, 1), 3))
    cuda.call("cuMemSetAccess", address, SIZE(size), access, SIZE(2))
    cuda.call("cuMemUnmap", address, SIZE(size))
    cuda.call("cuMemAddressFree", address, SIZE(size))
    cuda.call("cuMulticastUnbind", team, 1, SIZE(0), SIZE(size))
    equal(_used(cuda, other), before[1])
    cuda.call("cuMemRelease", team)
    equal(_used(cuda, cuda.context), before[0])
    cuda.call("cuDevicePrimaryCtxRelease_v2", 1)


PROPERTIES = collected(globals())

if __name__ == "__main__":
    PROPERTIES[sys.argv[1]]()
