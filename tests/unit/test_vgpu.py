# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules vgpu and vgpu_info: a task is one call of the program, and its words come through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _vgpu as vgpu
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import vgpu as module
from ansible_collections.flexai.xpu.plugins.modules import vgpu_info

DEFAULTS: dict[str, Any] = {"state": "present", "card": "auto", "force": False}
TRAIN = {
    "name": "train",
    "device": "huawei.com/vgpu=train",
    "card": "GPU-0",
    "cores_percent": 20,
    "memory_mib": 3072,
    "mode": "hard",
    "weight": 0,
}


class Program(Host):
    """A host on which the program answers *said*."""

    def __init__(self, root: Path, said: object, rc: int = 0, err: str = "") -> None:
        self.calls: list[list[str]] = []
        text = said if isinstance(said, str) else json.dumps(said)

        def answer(argv: Sequence[str], timeout_s: float) -> Completed:
            self.calls.append(list(argv[1:]))
            return Completed(rc, text, err)

        super().__init__(str(root), answer)
        program = root / "usr/local/bin/gpu-device-plugin"
        program.parent.mkdir(parents=True)
        program.touch(mode=0o755)


def task(**options: object) -> dict[str, Any]:
    return {**DEFAULTS, "name": "train", **options}


@pytest.mark.parametrize(
    ("options", "dry_run", "wanted"),
    [
        ({}, False, "ensure train --card=auto --output=json"),
        (
            {"cores": 20, "memory_mib": 3072, "mode": "elastic", "weight": 2, "card": "1"},
            True,
            "ensure train --card=1 --cores=20 --memory-mib=3072 --mode=elastic --weight=2 "
            "--dry-run --output=json",
        ),
        (
            {"cores": 0, "force": True},
            False,
            "ensure train --card=auto --cores=0 --force --output=json",
        ),
        ({"state": "absent", "cores": 3}, False, "remove train --output=json"),
        ({"state": "absent", "force": True}, True, "remove train --force --dry-run --output=json"),
    ],
)
def test_a_task_is_one_call(options: dict[str, Any], dry_run: bool, wanted: str) -> None:
    assert vgpu.argv(task(**options), dry_run) == ["gpu-device-plugin", "slice", *wanted.split()]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "-x"}, "name '-x': 1 to 63 letters"),
        ({"name": "a/b"}, "name 'a/b'"),
        ({"name": ""}, "name ''"),
        ({"name": "x" * 64}, "1 to 63 letters"),
        ({"name": "all"}, "taken by devices that are none of the host's"),
        ({"name": "s0123456789abcdef0123", "state": "absent"}, "none of the host's"),
        ({"cores": 101}, "cores 101 is not 0 to 100"),
        ({"cores": -1}, "cores -1"),
        ({"memory_mib": -1}, "memory_mib -1"),
        ({"weight": 10001}, "weight 10001 is not 0 to 10000"),
        ({"mode": "elastic", "cores": 0}, "mode elastic needs cores"),
        ({"mode": "fixed-share", "cores": 0}, "mode fixed-share needs cores"),
        ({"mode": "priority", "cores": 5}, "leave cores (5) out"),
        ({"mode": "hard", "weight": 5}, "only modes elastic and priority have one, not hard"),
    ],
)
def test_what_can_be_told_without_the_host_is(
    tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    host = Program(tmp_path, {})
    with pytest.raises(XpuError) as error:
        module.converge(host, task(**options), False)
    assert complaint in str(error.value)
    assert host.calls == []


@pytest.mark.parametrize("check", [False, True])
def test_a_resize_shows_both_terms(tmp_path: Path, check: bool) -> None:
    after = {**TRAIN, "cores_percent": 40}
    said = {"action": "resized", "changed": True, "before": TRAIN, "after": after}
    host = Program(tmp_path, said)
    result = module.converge(host, task(cores=40), check)
    assert result["changed"] and result["action"] == "resized"
    assert (result["device"], result["slice"]) == ("huawei.com/vgpu=train", after)
    lines = "card: GPU-0\ncores_percent: {}\nmemory_mib: 3072\nmode: hard\nweight: 0\n"
    assert result["diff"]["before"] == lines.format(20)
    assert result["diff"]["after"] == lines.format(40)
    assert ("--dry-run" in host.calls[0]) == check


def test_a_removal_returns_no_device_and_its_warning(tmp_path: Path) -> None:
    said = {"action": "removed", "changed": True, "before": TRAIN, "after": None}
    host = Program(tmp_path, {**said, "warning": "slice train was taken from under pid 7"})
    result = module.converge(host, task(state="absent", force=True), False)
    assert result["warnings"] == ["slice train was taken from under pid 7"]
    assert "device" not in result and result["diff"]["after"] == ""


def test_the_programs_refusal_is_the_modules(tmp_path: Path) -> None:
    host = Program(tmp_path, {"error": "no room for 1 card(s); GPU-0: 5 % cores free"}, rc=1)
    with pytest.raises(XpuError, match=r"no room for 1 card\(s\); GPU-0: 5 % cores free\."):
        module.converge(host, task(cores=20), False)


def test_a_program_that_is_not_there_or_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(XpuError, match=r"gpu-device-plugin is not installed.*role xpu_agent"):
        module.converge(Host(str(tmp_path)), task(), False)
    host = Program(tmp_path, "", rc=2, err='unexpected argument "slice"')
    with pytest.raises(XpuError, match='ended with 2 and said: unexpected argument "slice"'):
        module.converge(host, task(), False)


def test_info_is_the_programs_list(tmp_path: Path) -> None:
    pod = {**TRAIN, "name": "s0123456789abcdef0123", "owner": "ns/pod/app"}
    said = {"slices": [{**TRAIN, "owner": "host"}, pod], "cards": [], "problem": "no driver"}
    host = Program(tmp_path, said)
    assert vgpu_info.look(host, None) == {"changed": False, **said}
    assert host.calls == [["slice", "list", "--output=json"]]
    assert [one["name"] for one in vgpu_info.look(host, "train")["slices"]] == ["train"]
    assert vgpu_info.look(host, "nobody")["slices"] == []
