# SPDX-License-Identifier: Apache-2.0
"""Volcano's programs, the plugin huawei-xpu that its scheduler loads, and upstream's chart.

A Go plugin loads only into a program built from the same module versions with the same toolchain
and flags, so both come from ``native/volcano/go.mod`` through ``_go_build`` below. They are cached
apart: the plugin changes often, the programs only with their versions.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..archive import write_tarball
from ..cache import Cache, Recipe, digest_file, digest_tree
from ..toolchain import REPOSITORY, go_build, go_inputs, module_directory, zig_cc, zig_version

VERSION = "1.10.0"
UPSTREAM = "volcano.sh/volcano"
MODULE = REPOSITORY / "native/volcano"
PLUGIN = "huawei-xpu"
CHART = Path("installer/helm/chart")
# Go's own resolver and user lookup: with them no package but the runtime's needs C, and the
# scheduler runs on every glibc.
TAGS = ("-tags", "netgo,osusergo")
# zig's linker writes the symbol table that Go's -s leaves out, a third of the scheduler; what a
# plugin is bound by is the dynamic one, which stays.
LDFLAGS = "-s -w '-extldflags=-Wl,-s'"


def _go_build(outputs: Mapping[Path, str], extra: Sequence[str] = ()) -> None:
    compiler = {"CC": shlex.join(zig_cc())}
    go_build(MODULE, outputs, cgo=True, ldflags=LDFLAGS, extra=[*TAGS, *extra], env=compiler)


def _programs(out: Path) -> None:
    _go_build({out / "vc-scheduler": f"{UPSTREAM}/cmd/scheduler"})
    static = {
        out / f"vc-{name}": f"{UPSTREAM}/cmd/{name}"
        for name in ("controller-manager", "webhook-manager")
    }
    go_build(MODULE, static)


def _plugin(out: Path) -> None:
    _go_build({out / f"{PLUGIN}.so": f"./{PLUGIN}"}, ["-buildmode=plugin"])


def _chart(out: Path) -> None:
    root = module_directory(MODULE, UPSTREAM) / CHART
    members = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    if "volcano/Chart.yaml" not in members:
        raise FileNotFoundError(f"{root}/volcano/Chart.yaml: the module has no chart there")
    write_tarball(out / f"volcano-{VERSION}.tgz", root, members)


def _plugin_sources() -> str:
    sources = [path for path in MODULE.rglob("*.go") if not path.name.endswith("_test.go")]
    return digest_tree(sources, MODULE)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    os.link(source, target)


def build(cache: Cache) -> Path:
    """``vc-scheduler``, ``vc-controller-manager``, ``vc-webhook-manager``,
    ``plugins/huawei-xpu.so``, ``chart/volcano-<version>.tgz``."""
    pinned = go_inputs(MODULE, Path(__file__), zig=zig_version())
    programs = cache.get(Recipe("volcano-programs", pinned, _programs))
    plugin = cache.get(Recipe("volcano-plugin", {**pinned, "sources": _plugin_sources()}, _plugin))
    chart = (
        cache.get(Recipe("volcano-chart", go_inputs(MODULE, Path(__file__)), _chart))
        / f"volcano-{VERSION}.tgz"
    )

    def assemble(out: Path) -> None:
        for program in programs.iterdir():
            _link(program, out / program.name)
        _link(plugin / f"{PLUGIN}.so", out / "plugins" / f"{PLUGIN}.so")
        _link(chart, out / "chart" / chart.name)

    parts = {
        "programs": programs.name,
        "plugin": digest_file(plugin / f"{PLUGIN}.so"),
        "chart": digest_file(chart),
    }
    return cache.get(Recipe("volcano", parts, assemble))
