# SPDX-License-Identifier: GPL-3.0-or-later
"""SELinux: /opt/xpu gets a rule and its labels where SELinux is on, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _selinux as selinux
from ansible_collections.flexai.xpu.plugins.module_utils import _xpu_runtime as xpu
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import xpu_release

from . import hostroot

RULES = "/etc/selinux/targeted/contexts/files/file_contexts.local"
OURS = f"/opt/xpu(/.*)?    system_u:object_r:{selinux.READ_ONLY}:s0\n"
THEIRS = "/opt/xpu(/.*)?    system_u:object_r:usr_t:s0\n"


class Machine:
    """A host root whose semanage keeps its rules where SELinux's own does."""

    def __init__(self, root: Path, on: bool = True, tools: bool = True) -> None:
        self.root, self.calls = hostroot.bare(root), list[list[str]]()
        if on:
            hostroot.put(root, selinux.SWITCH, "1")
            hostroot.put(root, selinux.CONFIG, "SELINUX=enforcing\nSELINUXTYPE=targeted\n")
            hostroot.put(root, RULES, "# generated\n/srv(/.*)?    system_u:object_r:usr_t:s0\n")
        for name in ("semanage", "restorecon") if tools else ():
            hostroot.put(root, f"/usr/sbin/{name}", "", 0o755)
        self.sha256 = hostroot.xpu_tarball(root / "xpu.tar")
        self.host = Host(str(root), self.run)

    def rules(self) -> str:
        return self.host.read(RULES) or ""

    def run(self, argv: Sequence[str], _limit_s: float) -> Completed:
        words = [Path(argv[0]).name, *argv[1:]]
        self.calls.append(words)
        if "--add" in words:
            self.host.write(RULES, self.rules() + OURS)
        if "--delete" in words:
            self.host.write(RULES, self.rules().replace(OURS, ""))
        return Completed(0)

    def converge(self, state: str = "present", check: bool = False) -> dict[str, Any]:
        params = {"version": hostroot.XPU, "sha256": self.sha256, "tarball": "/xpu.tar"}
        return xpu_release.converge(self.host, {**params, "state": state}, check)

    def reason(self) -> str:
        release = xpu.release_name(hostroot.XPU, self.sha256)
        return xpu.plan(xpu.observe(self.host, release), release).reason


ADD = ["semanage", "fcontext", "--add", "--type", selinux.READ_ONLY, "/opt/xpu(/.*)?"]
RELABEL = ["restorecon", "-R", "/opt/xpu"]


def test_where_it_is_on_a_rule_is_made_the_files_follow_and_both_go_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    before = machine.rules()
    assert f"SELinux has no rule for /opt/xpu: {selinux.READ_ONLY}" in machine.reason()
    predicted = machine.converge(check=True)
    assert machine.calls == []
    done = machine.converge()
    assert done["diff"] == predicted["diff"]
    assert f"SELinux rule {selinux.READ_ONLY}\n" in done["diff"]["after"]
    assert machine.calls == [ADD, RELABEL]
    assert machine.reason() == ""
    assert not machine.converge()["changed"]
    assert machine.calls == [ADD, RELABEL]
    assert machine.converge("absent")["changed"]
    assert machine.calls[2:] == [["semanage", "fcontext", "--delete", "/opt/xpu(/.*)?"]]
    assert machine.rules() == before
    assert not machine.converge("absent")["changed"]


def test_where_it_is_off_nothing_is_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path, on=False)
    assert "SELinux" not in machine.reason()
    machine.converge()
    machine.converge("absent")
    assert machine.calls == []


def test_a_rule_of_the_sites_is_followed_and_stays(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    hostroot.put(machine.root, RULES, THEIRS)
    assert "SELinux" not in machine.reason()
    machine.converge()
    machine.converge("absent")
    assert machine.calls == [RELABEL]
    assert machine.rules() == THEIRS


def test_a_rule_that_was_lost_is_made_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.converge()
    hostroot.put(machine.root, RULES, "")
    assert machine.converge()["changed"]
    assert OURS in machine.rules()


def test_a_tool_that_is_missing_is_named_and_the_next_run_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, tools=False)
    with pytest.raises(XpuError, match="semanage: not installed") as error:
        machine.converge()
    assert "policycoreutils-python-utils" in error.value.remedy
    assert not machine.host.link(xpu.CURRENT), "containers get no files that they can't read"
    for name in ("semanage", "restorecon"):
        hostroot.put(machine.root, f"/usr/sbin/{name}", "", 0o755)
    assert machine.converge()["changed"]
    assert machine.calls == [ADD, RELABEL]
