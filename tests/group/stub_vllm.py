#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""stub_engine.py under vLLM's own command line: what a pod of the testbed calls as ``vllm``.

Takes the flags that the collection writes for vLLM and refuses any other, as vLLM does; wants a
model's config.json where it is told that the model lies, and a node rank of every member.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Beside this file, on a node as here.
import stub_engine  # type: ignore[import-not-found]

# Of each flag that changes nothing here: whether a value follows it.
IDLE = {
    "--host": True,
    "--pipeline-parallel-size": True,
    "--max-model-len": True,
    "--gpu-memory-utilization": True,
    "--dtype": True,
    "--shutdown-timeout": True,
    "--master-port": True,
    "--kv-cache-memory-bytes": True,
    "--max-num-seqs": True,
    "--max-num-batched-tokens": True,
    "--load-format": True,
    "--enforce-eager": False,
    "--enable-chunked-prefill": False,
    "--trust-remote-code": False,
}


def parse(words: list[str]) -> argparse.Namespace:
    """``vllm serve MODEL …``."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model", type=Path)
    serve.add_argument("--served-model-name")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--tensor-parallel-size", type=int, default=1)
    serve.add_argument("--nnodes", type=int, default=1)
    serve.add_argument("--node-rank", type=int, default=0)
    serve.add_argument("--master-addr", default=stub_engine.LEADER)
    serve.add_argument("--headless", action="store_true")
    for flag, valued in IDLE.items():
        serve.add_argument(flag, action="store" if valued else "store_true")
    asked = parser.parse_args(words)
    if not (asked.model / "config.json").is_file():
        serve.error(f"{asked.model} has no config.json")
    if asked.headless != (asked.node_rank > 0):
        serve.error(f"--node-rank {asked.node_rank}: ranks above 0 are --headless, and no other is")
    if asked.tensor_parallel_size % asked.nnodes:
        serve.error(f"--tensor-parallel-size {asked.tensor_parallel_size} over {asked.nnodes}")
    return asked


def main() -> None:
    asked = parse(sys.argv[1:])
    stub_engine.SIZE, stub_engine.INDEX = asked.nnodes, asked.node_rank
    stub_engine.LEADER, stub_engine.API_PORT = asked.master_addr, asked.port
    stub_engine.MODEL = asked.served_model_name or str(asked.model)
    if not asked.headless:
        stub_engine.say(f"Starting vLLM API server on http://0.0.0.0:{asked.port} (a stub)")
    stub_engine.main()


if __name__ == "__main__":
    main()
