# SPDX-License-Identifier: Apache-2.0
"""python3 in a container asks every API what it has: ``everything.py SPIN.PTX`` prints JSON.

One process holds memory and looks, a child of it computes; both are the container's only ones.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

# They lie beside this file.
nvml_tenant = importlib.import_module("nvml_tenant")
tenant = importlib.import_module("tenant")
GIB = 1 << 30
HANGS_SECONDS = 60


def compute(text: str) -> None:
    """Kernels of 1 ms, one after another, until killed."""
    library = tenant.open_driver()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with open(text, "rb") as ptx:
        assert library.cuModuleLoadData(ctypes.byref(module), ptx.read() + b"\0") == 0
    assert library.cuModuleGetFunction(ctypes.byref(function), module, b"spin_ns") == 0
    length = ctypes.c_uint64(1_000_000)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(length))
    while True:
        assert library.cuLaunchKernel(function, *(1,) * 6, 0, None, parameters, None) == 0
        assert library.cuStreamSynchronize(None) == 0


def windows(wanted: int, enough: int) -> list[dict[str, Any]]:
    """What NVML says of stretches of a second, until one shows *enough* percent."""
    library = nvml_tenant.opened()
    device = nvml_tenant.by_index(library, 0)[1]
    seen: list[dict[str, Any]] = []
    rates = nvml_tenant.Rates()
    since = 0
    deadline = time.monotonic() + HANGS_SECONDS
    while len(seen) < wanted and time.monotonic() < deadline:
        time.sleep(1.0)
        samples = nvml_tenant.samples(library, device, since)
        if not isinstance(samples, list):
            continue
        since = max(sample[2] for sample in samples)
        assert library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates)) == 0
        seen.append({"samples": [sample[:2] for sample in samples], "gpu": rates.gpu})
        if sum(sample[1] for sample in samples) >= enough:
            break
    return seen


def said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def main() -> int:
    worker = os.fork()
    if worker == 0:
        compute(sys.argv[1])
    try:
        library = tenant.open_driver()
        shown = tenant.free_and_total(library)
        total = ctypes.c_size_t()
        assert library.cuDeviceTotalMem_v2(ctypes.byref(total), 0) == 0
        over, _ = tenant.allocate(library, 3 * GIB + 1)
        held, _ = tenant.allocate(library, GIB)
        seen = windows(5, 18)
        fields = "memory.total,memory.used,memory.free,utilization.gpu"
        report = {
            "pids": {"self": os.getpid(), "worker": worker},
            "cuMemGetInfo": shown,
            "cuMemGetInfo after": tenant.free_and_total(library),
            "cuDeviceTotalMem": total.value,
            "over": over,
            "held": held,
            "windows": seen,
            "nvml": nvml_tenant.view(),
            "smi query": said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"),
            "smi": said("nvidia-smi"),
            "monitor": json.loads(said("gpu-monitor", "-p", "1", "-o", "json")),
        }
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
