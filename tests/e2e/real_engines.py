# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real vLLM servers for a testbed's containers: packages and a random model on a volume, and
what makes them small. They share KV blocks by files in the memory that their containers share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from testbed.hosts import Host
from xpubuild.cache import Cache
from xpubuild.recipes import vllm_cpu

from e2e.platform import ROOT

# On the hosts; a file system that they share with this machine.
PLACE = "/var/lib/engines"
MODELS = f"{PLACE}/models"
MODEL = f"{MODELS}/tiny"
NUMA = Path("/usr/lib/x86_64-linux-gnu/libnuma.so.1")
ENV = {
    # The images have no program vllm; everything behind that word is ours to test.
    "PATH": f"{PLACE}/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": f"{PLACE}/vllm",
    "LD_LIBRARY_PATH": f"{PLACE}/lib",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HOME": "/tmp",
}
ARGS = [
    "--enforce-eager", "--kv-cache-memory-bytes=67108864", "--no-enable-prefix-caching",
    "--max-num-seqs=4",
]  # fmt: skip
# Options of module flexai.xpu.syshax, for both engines.
OPTIONS: dict[str, Any] = {
    "max_model_len": 2048,
    "block_size": 32,
    "kv_transfer": {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": "/dev/shm/blocks"},
    },
}
DTYPE = "float32"


def on_machine(host: Host) -> Path:
    """PLACE, as this machine sees it."""
    return host.directory / "var-lib" / Path(PLACE).name


def put(host: Host) -> None:
    """vLLM, the program that starts it, and a model."""
    place = on_machine(host)
    place.mkdir(exist_ok=True)
    built = vllm_cpu.build(Cache())
    if not (place / "vllm").exists():
        # Links, no copies: 6 GB.
        subprocess.run(["cp", "-al", str(built / "site"), str(place / "vllm")], check=True)
    subprocess.run(
        [sys.executable, ROOT / "native/syshax/engines/tinymodel.py", place / "models/tiny"],
        env={**os.environ, "PYTHONPATH": str(built / "site")}, check=True, capture_output=True,
    )  # fmt: skip
    # Of Debian's libnuma1, which the image lacks and vLLM's own library is linked against.
    host.put(f"{PLACE}/lib/libnuma.so.1", NUMA.resolve())
    start = b'#!/bin/sh\nexec python3 -m vllm.entrypoints.cli.main "$@"\n'
    host.put(f"{PLACE}/bin/vllm", start, mode=0o755)
