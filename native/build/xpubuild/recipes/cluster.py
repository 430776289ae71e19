# SPDX-License-Identifier: Apache-2.0
"""The programs of native/cluster that run on Kubernetes nodes."""

from __future__ import annotations

from pathlib import Path

from .. import latebound
from ..cache import Cache, Recipe, digest_file, digest_tree
from ..toolchain import REPOSITORY, go_build, go_inputs, module_directory, zig_version

MODULE = REPOSITORY / "native/cluster"
NVML_HEADER = ("github.com/NVIDIA/go-nvml", "pkg/nvml/nvml.h")


def sources() -> list[Path]:
    """What decides the program, tests aside."""
    return [path for path in MODULE.rglob("*.go") if not path.name.endswith("_test.go")]


def _build(out: Path) -> None:
    bindings, path = NVML_HEADER
    header = (module_directory(MODULE, bindings) / path).read_text(encoding="utf-8")
    go_build(
        MODULE,
        {out / "gpu-device-plugin": "./cmd/gpu-device-plugin"},
        cgo=True,
        ldflags=f"-s -w {latebound.LDFLAGS}",
        extra=["-tags", "netgo,osusergo"],
        env=latebound.compiler(latebound.scratch(out), [header]),
    )


def build(cache: Cache) -> Path:
    """``gpu-device-plugin``, for every glibc since 2.17; loads the driver's NVML at run time."""
    inputs = go_inputs(
        MODULE,
        Path(__file__),
        sources=digest_tree(sources(), MODULE),
        linking=digest_file(Path(latebound.__file__)),
        zig=zig_version(),
    )
    return cache.get(Recipe("cluster", inputs, _build))
