# SPDX-License-Identifier: Apache-2.0
"""The programs of native/cluster that load nothing at run time: static, for any Linux.

``xpu-client-tool`` goes into the xpu runtime, since slices' containers see it at ``/opt/xpu/bin``;
``xpu-exporter`` is an image of its own.
"""

from __future__ import annotations

from pathlib import Path

from ..cache import Cache, Recipe, digest_tree
from ..toolchain import REPOSITORY, collection_version, go_build, go_inputs

MODULE = REPOSITORY / "native/cluster"
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}
CLIENT_TOOL, EXPORTER = "xpu-client-tool", "xpu-exporter"
PACKAGES = {
    CLIENT_TOOL: ("pids/api", "pids/cgroup"),
    EXPORTER: ("exporter", "pids/api", "vxpu"),
}


def sources(program: str) -> list[Path]:
    """What decides a program, tests aside: its own package and those of the module it imports."""
    packages = (f"cmd/{program}", *PACKAGES[program])
    found = (path for package in packages for path in (MODULE / package).glob("*.go"))
    return [path for path in found if not path.name.endswith("_test.go")]


def build(cache: Cache, program: str, arch: str = "x86_64") -> Path:
    """The program itself."""
    version = collection_version()

    def make(out: Path) -> None:
        flags = f"-s -w -X main.version={version}"
        outputs = {out / program: f"./cmd/{program}"}
        go_build(MODULE, outputs, ldflags=flags, goarch=GOARCH[arch])

    inputs = go_inputs(
        MODULE,
        Path(__file__),
        sources=digest_tree(sources(program), MODULE),
        arch=arch,
        version=version,
    )
    return cache.get(Recipe(program, inputs, make)) / program
