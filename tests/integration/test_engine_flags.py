# SPDX-License-Identifier: GPL-3.0-or-later
"""The flags that are written for an engine, read by that engine's own parser.

vLLM is the real one (recipe vllm_cpu: once 3 GB fetched). A flag that it has dropped or renamed
fails here before a service does.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._inference import engines
from ansible_collections.flexai.xpu.plugins.module_utils._inference.engines import Launch
from xpubuild.cache import Cache
from xpubuild.recipes import vllm_cpu

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        sys.platform != "linux" or os.uname().machine != "x86_64",
        reason="the pinned wheels are of Linux on x86_64",
    ),
]

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
print(json.dumps([
    {name: value for name, value in vars(parser.parse_args(words)).items()
     if isinstance(value, (str, int, float, list, type(None)))}
    for words in json.load(sys.stdin)
]))
"""
ENV = {"$FLEXAI_LEADER_IP": "10.0.0.1", "$LWS_WORKER_INDEX": "1"}
ONE = Launch(
    "vllm",
    vllm_cpu.VERSION,
    "/models/m",
    "m",
    8000,
    max_model_len=512,
    gpu_memory_utilization=0.5,
    dtype="bfloat16",
    drain_seconds=30,
)
NODES = replace(ONE, tp=2, pp=2, group_size=2, backend="mp")
DATA = replace(ONE, dp=4, group_size=2, backend="dp")


def words(fragment: str) -> list[str]:
    """As the shell makes them, without ``vllm serve``."""
    for name, value in ENV.items():
        fragment = fragment.replace(f'"{name}"', value)
    fragment = fragment.replace('"$((LWS_WORKER_INDEX * 2))"', "2")
    return shlex.split(fragment)[2:]


def read(fragments: list[str], tmp_path: Path) -> list[dict[str, object]]:
    site = vllm_cpu.build(Cache()) / "site"
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        env={
            **os.environ,
            "PYTHONPATH": str(site),
            "HOME": str(tmp_path),
            "VLLM_LOGGING_LEVEL": "ERROR",
        },
        input=json.dumps([words(fragment) for fragment in fragments]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_vllm_reads_what_was_meant(tmp_path: Path) -> None:
    nodes, data = engines.commands(NODES), engines.commands(DATA)
    one, leader, worker, ranks = read(
        [engines.commands(ONE).leader, nodes.leader, nodes.worker, data.worker], tmp_path
    )
    assert {name: one[name] for name in ("max_model_len", "gpu_memory_utilization", "dtype")} == {
        "max_model_len": 512,
        "gpu_memory_utilization": 0.5,
        "dtype": "bfloat16",
    }
    assert (one["shutdown_timeout"], one["served_model_name"], one["port"]) == (30, ["m"], 8000)
    for node, rank, headless in ((leader, 0, False), (worker, 1, True)):
        assert (node["tensor_parallel_size"], node["pipeline_parallel_size"]) == (2, 2)
        assert (node["nnodes"], node["node_rank"], node["headless"]) == (2, rank, headless)
        assert (node["master_addr"], node["master_port"]) == ("10.0.0.1", engines.MASTER_PORT)
    assert (ranks["data_parallel_size"], ranks["data_parallel_size_local"]) == (4, 2)
    assert (ranks["data_parallel_start_rank"], ranks["headless"]) == (2, True)
    assert ranks["data_parallel_rpc_port"] == engines.DP_RPC_PORT
