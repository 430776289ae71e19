# SPDX-License-Identifier: Apache-2.0
"""A source tree takes the place of the Volcano that we pin, with its own versions."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from xpubuild.recipes import volcano_source
from xpubuild.recipes.volcano import MODULE, UPSTREAM
from xpubuild.toolchain import ToolchainError, go, module_directory, run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Volcano's sources, as somebody's checkout, with the field that 1.10.1 brought."""
    copied = tmp_path / "volcano"
    shutil.copytree(module_directory(MODULE, UPSTREAM), copied, copy_function=shutil.copyfile)
    for path in [copied, *copied.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    event = copied / "pkg/scheduler/framework/event.go"
    text = event.read_text(encoding="utf-8")
    field = "Task *api.TaskInfo\n"
    assert field in text
    event.write_text(text.replace(field, field + "\tErr error\n"), encoding="utf-8")
    return copied


def test_the_trees_versions_take_the_place_of_ours(tree: Path, tmp_path: Path) -> None:
    run([go(), "mod", "edit", "-replace=k8s.io/api=k8s.io/api@v0.30.9"], cwd=tree)
    run([go(), "mod", "edit", "-replace=volcano.sh/apis=./staging"], cwd=tree)
    work = tmp_path / "work"
    work.mkdir()
    volcano_source.prepare(tree, work)
    found = json.loads(run([go(), "mod", "edit", "-json"], cwd=work))
    targets = {
        replace["Old"]["Path"]: (replace["New"]["Path"], replace["New"].get("Version"))
        for replace in found["Replace"]
    }
    assert targets[UPSTREAM] == (str(tree), None)
    assert targets["k8s.io/api"] == ("k8s.io/api", "v0.30.9")
    assert targets["volcano.sh/apis"] == (str(tree / "staging"), None)


def test_the_toolchain_reads_volcano_from_the_tree(tree: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    volcano_source.prepare(tree, work)
    where = run(
        [go(), "list", "-mod=mod", "-f", "{{.Dir}}", f"{UPSTREAM}/pkg/scheduler/framework"],
        cwd=work,
        env=volcano_source.OFFLINE,
    )
    assert where.strip() == str(tree / "pkg/scheduler/framework")


def test_a_tree_that_is_not_volcano_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=f"VOLCANO_SRC={tmp_path} has no go.mod"):
        volcano_source.description(tmp_path)
    (tmp_path / "go.mod").write_text("module example.org/other\n\ngo 1.22\n", encoding="utf-8")
    with pytest.raises(ToolchainError, match=r"module example.org/other; volcano.sh/volcano is"):
        volcano_source.description(tmp_path)


def test_make_asks_for_the_tree() -> None:
    done = subprocess.run(
        ["make", "-s", "volcano", "VOLCANO_SRC="],
        cwd=MODULE.parents[1],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert "make volcano VOLCANO_SRC=/path/to/volcano" in done.stderr
