# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver API by ctypes, as far as the tests need it; nothing in it knows a simulator."""

from __future__ import annotations

import ctypes
from pathlib import Path

SPIN = Path(__file__).resolve().parents[1] / "kernels/spin.ptx"
NOT_READY = 600
OUT_OF_MEMORY = 2
PTR = ctypes.c_void_p


class CudaError(RuntimeError):
    """A driver call failed."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} returned {code}")
        self.code = code


class Cuda:
    """One process' driver with the primary context of device 0 current and ``spin_ns`` loaded."""

    def __init__(self, device: int = 0) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        context, module, function = PTR(), PTR(), PTR()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuModuleLoadData", ctypes.byref(module), SPIN.read_bytes())
        self.call("cuModuleGetFunction", ctypes.byref(function), module, b"spin_ns")
        self.context, self.module, self.spin = context, module, function

    def code(self, name: str, *arguments: object) -> int:
        """The result of a driver call, whatever it is."""
        result: int = getattr(self.library, name)(*arguments)
        return result

    def call(self, name: str, *arguments: object) -> None:
        """A driver call that must succeed."""
        result = self.code(name, *arguments)
        if result != 0:
            raise CudaError(name, result)

    def launch(self, ns: int, stream: PTR | None = None, name: str = "cuLaunchKernel") -> None:
        value = ctypes.c_uint64(ns)
        parameters = (PTR * 1)(ctypes.cast(ctypes.byref(value), PTR))
        self.call(name, self.spin, 1, 1, 1, 1, 1, 1, 0, stream, parameters, None)

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")

    def event(self, flags: int = 0) -> PTR:
        event = PTR()
        self.call("cuEventCreate", ctypes.byref(event), flags)
        return event

    def stream(self) -> PTR:
        stream = PTR()
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        return stream

    def elapsed_ms(self, first: PTR, last: PTR) -> float:
        milliseconds = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(milliseconds), first, last)
        return milliseconds.value

    def allocate(self, count: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(count))
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value
