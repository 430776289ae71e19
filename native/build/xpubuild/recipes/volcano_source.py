# SPDX-License-Identifier: Apache-2.0
"""Volcano's programs and our plugin from a source tree instead of the module proxy.

What the proxy serves (1.10.0) is what we ship; whoever runs another version, the documents' 1.10.2
for one, gives its tree. The plugin's module is copied, its Volcano replaced by the tree, and every
other version taken from the tree's own go.mod, so that scheduler and plugin agree on all of them.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cache import say
from ..toolchain import ToolchainError, go, go_build, run, zig_cc
from .volcano import LDFLAGS, MODULE, PLUGIN, TAGS, UPSTREAM

OFFLINE: Mapping[str, str] = {"GOTOOLCHAIN": "local", "GOWORK": "off"}
PACKAGES = ("place", "bridge", PLUGIN)


def description(tree: Path) -> dict[str, Any]:
    """The tree's go.mod as data; an error that names the tree when it is no Volcano."""
    if not (tree / "go.mod").is_file():
        raise ToolchainError(
            f"VOLCANO_SRC={tree} has no go.mod; give the top directory of Volcano's sources"
        )
    found: dict[str, Any] = json.loads(run([go(), "mod", "edit", "-json"], cwd=tree, env=OFFLINE))
    path = found["Module"]["Path"]
    if path != UPSTREAM:
        raise ToolchainError(f"VOLCANO_SRC={tree} is the module {path}; {UPSTREAM} is wanted")
    return found


def edits(tree: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of ``go mod edit`` that make our module one of the tree's versions."""
    for replace in ours.get("Replace") or ():
        yield f"-dropreplace={_versioned(replace['Old'])}"
    for replace in theirs.get("Replace") or ():
        new = replace["New"]
        target = _versioned(new) if "Version" in new else str((tree / new["Path"]).resolve())
        yield f"-replace={_versioned(replace['Old'])}={target}"
    for require in theirs.get("Require") or ():
        yield f"-require={_versioned(require)}"
    yield f"-replace={UPSTREAM}={tree}"
    yield f"-go={theirs['Go']}"


def _versioned(module: Mapping[str, str]) -> str:
    return "@".join(filter(None, (module["Path"], module.get("Version"))))


def prepare(tree: Path, work: Path) -> None:
    """Our module in *work*, with the tree in the place of the version that we pin."""
    for name in ("go.mod", "go.sum"):
        shutil.copy(MODULE / name, work / name)
    for package in PACKAGES:
        (work / package).mkdir()
        for source in (MODULE / package).glob("*.go"):
            if not source.name.endswith("_test.go"):
                shutil.copy(source, work / package / source.name)
    ours = json.loads(run([go(), "mod", "edit", "-json"], cwd=work, env=OFFLINE))
    words = list(edits(tree, description(tree), ours))
    run([go(), "mod", "edit", *words], cwd=work, env=OFFLINE)
    # Sums of the tree's versions that ours doesn't have.
    with (work / "go.sum").open("a", encoding="utf-8") as sums:
        sums.write((tree / "go.sum").read_text(encoding="utf-8"))


def build(tree: Path, out: Path) -> None:
    """Fill *out* as ``volcano.build`` does, but for the chart, which lies in the tree."""
    tree = tree.resolve()
    with tempfile.TemporaryDirectory(prefix="volcano-source-") as directory:
        work = Path(directory)
        prepare(tree, work)
        programs = ("scheduler", "controller-manager", "webhook-manager")
        say(f"  go list of {UPSTREAM} in {tree}")
        wanted = [f"./{PLUGIN}", *(f"{UPSTREAM}/cmd/{name}" for name in programs)]
        run([go(), "list", "-mod=mod", "-deps", *wanted], cwd=work, env=OFFLINE)
        (out / "plugins").mkdir(parents=True, exist_ok=True)
        compiler = {"CC": shlex.join(zig_cc())}
        for outputs, extra in (
            ({out / "vc-scheduler": f"{UPSTREAM}/cmd/scheduler"}, ()),
            ({out / f"plugins/{PLUGIN}.so": f"./{PLUGIN}"}, ("-buildmode=plugin",)),
        ):
            go_build(work, outputs, cgo=True, ldflags=LDFLAGS, extra=[*TAGS, *extra], env=compiler)
        go_build(work, {out / f"vc-{name}": f"{UPSTREAM}/cmd/{name}" for name in programs[1:]})
