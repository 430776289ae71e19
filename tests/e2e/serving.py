# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines on the testbed's nodes, and services that run them: what demo and tests share.

A node has a directory that pods mount as /engine: ``bin/vllm`` and a ``model``. It is vLLM itself,
on the CPU, or the stub of tests/group; the services are the same (inventories/sandbox/services).
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from testbed.hosts import Host, load
from xpubuild.cache import Cache, Recipe
from xpubuild.recipes import vllm_cpu

from e2e.platform import ROOT, Platform, PlatformError, Run

SERVICES = ROOT / "inventories" / "sandbox" / "services"
IMAGE = "docker.io/library/xpu-workload:v1.0"
DIRECTORY = PurePosixPath("/var/lib/flexai-engine")
# Of pair.yml: namespace, name, and the name that its model is served by.
PAIR = ("serving-demo", "pair", "tiny")
STUB = (ROOT / "tests/group/stub_vllm.py", ROOT / "tests/group/stub_engine.py")
TINY_MODEL = ROOT / "native/syshax/engines/tinymodel.py"
# Two processes of vLLM with a model of nothing, and the machine's own needs.
FREE_KIB = 8 << 20
# A condition is waited for; this is when to give up on a machine that does ten other things.
PATIENCE_S = 600.0
# As tests/group/test_vllm.py has it, and for the same reasons.
VLLM = """\
#!/bin/bash
# vLLM on the CPU, from the machine's cache; the image brings Python and nothing else.
export PYTHONPATH=/engine/site LD_LIBRARY_PATH=/engine/lib HOME=/tmp PYTHONDONTWRITEBYTECODE=1
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 VLLM_NO_USAGE_STATS=1 TORCH_COMPILE_DISABLE=1
export OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
exec python3 -m vllm.entrypoints.cli.main "$@"
"""
ASK = """\
import json, sys, urllib.request
body = json.loads(sys.argv[2]) if sys.argv[2] else None
data = json.dumps(body).encode() if body else None
call = urllib.request.Request(sys.argv[1], data, {"Content-Type": "application/json"})
print(urllib.request.urlopen(call, timeout=60).read().decode())
"""


class NotBuilt(LookupError):
    """What was asked of the cache isn't there."""


class Kept(Cache):
    """A cache that builds nothing: 3 GB aren't fetched for a demo."""

    def get(self, recipe: Recipe) -> Path:
        found = self.path(recipe)
        if not found.is_dir():
            raise NotBuilt(recipe.name)
        return found


@dataclass(frozen=True)
class Engine:
    """What serves, and where its files come from; ``why`` vLLM itself can't, or nothing."""

    why: str
    site: Path | None = None

    @property
    def name(self) -> str:
        return "vLLM 0.32.0 on the CPU" if self.site else f"a stub engine ({self.why})"


def available_kib() -> int:
    """Memory that programs can still have."""
    words = Path("/proc/meminfo").read_text(encoding="ascii").split()
    return int(words[words.index("MemAvailable:") + 1])


def best(state: Path) -> Engine:
    """vLLM itself where this machine has it and the memory; *state* is on the nodes' file system,
    to which 6 GB are linked and not copied."""
    try:
        site = vllm_cpu.build(Kept()) / "site"
    except NotBuilt:
        return Engine("vLLM's environment isn't in the cache; `make test-syshax` puts it there")
    if not numa():
        return Engine("this machine has no libnuma.so.1, which vLLM loads")
    free = available_kib()
    if free < FREE_KIB:
        return Engine(f"{free >> 20} GiB of memory are free, two members of vLLM take 8")
    if site.stat().st_dev != state.stat().st_dev:
        return Engine(f"{site} and {state} are on two file systems; 6 GB aren't copied")
    return Engine("", site)


def stub() -> Engine:
    """The stub, for tests, which kill it in many ways."""
    return Engine("for tests")


def numa() -> Path | None:
    """The machine's libnuma.so.1, which the image lacks."""
    name = ctypes.util.find_library("numa")
    if name is None:
        return None
    places = (Path("/usr/lib/x86_64-linux-gnu"), Path("/lib/x86_64-linux-gnu"), Path("/usr/lib64"))
    return next((place / name for place in places if (place / name).exists()), None)


def place(engine: Engine, hosts: Sequence[Host]) -> None:
    """Put the engine and a model on *hosts*; what lay there goes."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        if engine.site:
            subprocess.run(
                [sys.executable, str(TINY_MODEL), str(model)],
                env={**os.environ, "PYTHONPATH": str(engine.site), "HF_HUB_OFFLINE": "1"},
                check=True, capture_output=True,
            )  # fmt: skip
        else:
            (model / "config.json").write_text("{}\n")
        for host in hosts:
            remove([host])
            _fill(engine, host, model)


def _fill(engine: Engine, host: Host, model: Path) -> None:
    for file in model.iterdir():
        host.put(str(DIRECTORY / "model" / file.name), file)
    if engine.site is None:
        program, library = STUB
        host.put(str(DIRECTORY / "bin/vllm"), program, 0o755)
        host.put(str(DIRECTORY / "bin" / library.name), library)
        return
    host.put(str(DIRECTORY / "bin/vllm"), VLLM.encode(), 0o755)
    found = numa()
    assert found is not None
    host.put(str(DIRECTORY / "lib" / "libnuma.so.1"), found)
    # A host's /var/lib is a directory of the machine's: names for the same files, no space.
    there = host.directory / "var-lib" / DIRECTORY.relative_to("/var/lib") / "site"
    subprocess.run(["cp", "-al", str(engine.site), str(there)], check=True)


def remove(hosts: Sequence[Host]) -> None:
    """Take the engine off *hosts*."""
    for host in hosts:
        there = host.directory / "var-lib" / DIRECTORY.relative_to("/var/lib")
        if there.exists():
            shutil.rmtree(there)


def nodes(platform: Platform) -> tuple[Host, ...]:
    """Where pods with engines may run."""
    return load(platform.name).by_role("worker")


def inference(
    platform: Platform,
    service: str,
    *arguments: str,
    playbook: str = "inference",
    check: bool = True,
    **variables: Any,
) -> Run:
    """Run ``flexai.xpu.inference`` on a file of inventories/sandbox/services, as an operator."""
    chosen = {"serving_image": IMAGE, **variables}
    file = ("--extra-vars", f"@{SERVICES / service}.yml")
    return platform.play(f"flexai.xpu.{playbook}", chosen, *file, *arguments, check=check)


def table(done: Run) -> list[str]:
    """The lines that ``inference_status`` shows, out of Ansible's output."""
    lines: list[str]
    lines, _end = json.JSONDecoder().raw_decode(done.output.partition('"msg": ')[2])
    return lines


def ask(platform: Platform, url: str, body: dict[str, Any] | None = None) -> Run:
    """Call a Service from a host of the cluster; its address means nothing elsewhere."""
    words = ("python3", "-c", ASK, url, json.dumps(body) if body else "")
    return platform.on_host("cp1", *words, check=False)


def address(platform: Platform, namespace: str, name: str) -> str:
    """The address of a Service, which hosts reach without the cluster's DNS."""
    what = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"
    found = platform.kubectl("-n", namespace, "get", "service", name, "-o", what).output
    return f"http://{found.strip()}"


def answer(platform: Platform, url: str, body: dict[str, Any] | None = None) -> str:
    """What a Service answers: a pod that is ready is not yet behind it on every node."""
    last = Run(1, "")

    def answered() -> bool:
        nonlocal last
        last = ask(platform, url, body)
        return last.rc == 0

    wait_for(answered, f"an answer from {url}", lambda: last.output)
    return last.output


def chat(platform: Platform, namespace: str, name: str, model: str, question: str) -> str:
    """The answer to a chat call through the Service."""
    body = {
        "model": model,
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": question}],
    }
    said = answer(platform, f"{address(platform, namespace, name)}/v1/chat/completions", body)
    return str(json.loads(said)["choices"][0]["message"]["content"])


def wait_for(condition: Callable[[], Any], what: str, story: Callable[[], str] = lambda: "") -> Any:
    """The first true value of *condition*; where none comes, *story* tells what came instead."""
    until = time.monotonic() + PATIENCE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise PlatformError(f"never came to be: {what}\n{story()}")
        time.sleep(0.5)
