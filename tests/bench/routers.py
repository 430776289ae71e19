# SPDX-License-Identifier: GPL-3.0-or-later
"""Other routers for ``bench-conductor``'s table: PyPI's, as pinned in ``routers/<name>.txt``.

Each is installed into a directory of its own in the user's cache, when it is first asked for: none
of its packages comes near this project's or the conductor's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.toolchain import run

from bench import syshaxlib as lib

PINS = Path(__file__).with_name("routers")
# How each is started before one engine. Their policies differ only where there are several.
PROGRAMS = {
    "sglang-router": ["sglang_router.launch_router", "--policy=round_robin"],
    "vllm-router": ["vllm_router.launch_router", "--policy=round_robin"],
}


def build(cache: Cache, name: str) -> Path:
    """``site``: *name* and what it imports, for PYTHONPATH."""
    pins = PINS / f"{name}.txt"

    def fill(out: Path) -> None:
        run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "--only-binary", ":all:", "--target", out / "site", "-r", pins]
        )  # fmt: skip

    inputs = {
        "pins": digest_file(pins),
        "recipe": digest_file(Path(__file__)),
        "python": ".".join(map(str, sys.version_info[:2])),
        "platform": sysconfig.get_platform(),
    }
    return cache.get(Recipe("bench-router", inputs, fill))


def chosen(name: str) -> str:
    """*name*, if it is a router that can be started here."""
    if name not in PROGRAMS:
        raise SystemExit(
            f"BASELINE={name}: not known; allowed: {', '.join(PROGRAMS)}. Any other router that "
            "runs already can be given as BASELINE_URL=http://host:port."
        )
    return name


def words(name: str, port: int, metrics_port: int, engine: str) -> list[str]:
    """The router's start on *port* before *engine*, with nothing to do but pass on."""
    module, *policy = PROGRAMS[name]
    return [
        "-m", module, *policy, "--host=127.0.0.1", f"--port={port}", f"--worker-urls={engine}",
        f"--prometheus-port={metrics_port}", "--log-level=error",
    ]  # fmt: skip


@contextlib.contextmanager
def started(name: str, engine: str) -> Iterator[lib.Process]:
    """Router *name* on the proxies' core."""
    environment = {**os.environ, "PYTHONPATH": str(build(Cache(), name) / "site")}
    port = lib.free_port()
    argv = words(name, port, lib.free_port(), engine)
    with lib.served(argv, port, lib.PROXY_CORE, environment) as process:
        yield process
