# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of hosts without Kubernetes: who shall have it, and how it comes and goes."""

from __future__ import annotations

import configparser
import hashlib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _judge as judge
from ansible_collections.flexai.xpu.plugins.module_utils import _plan as plan
from ansible_collections.flexai.xpu.plugins.module_utils import _xpu_agent as agent
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import xpu_agent

from . import hostroot

PROGRAM = b"#!/bin/sh\n"
SHA = hashlib.sha256(PROGRAM).hexdigest()
RELEASE = f"0.1.0-{SHA[:12]}"
FRESH = agent.Facts(digest="", unit=None, enabled=False, runs=False, record={})
IN_FORCE = agent.Facts(
    digest=SHA,
    unit=agent.UNIT_TEXT,
    enabled=True,
    runs=True,
    record={"version": "0.1.0", "sha256": SHA},
)


def params(**more: object) -> dict[str, Any]:
    base = {"state": "present", "engine": "auto", "version": "0.1.0", "sha256": SHA}
    return {**base, "program": "/cache/gpu-device-plugin", **more}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/gpu-device-plugin").write_bytes(PROGRAM)
    return Host(str(tmp_path))


@pytest.mark.parametrize(
    ("state", "engine", "available", "wanted"),
    [
        ("auto", "docker", True, True),
        ("auto", "docker", False, False),
        ("auto", "containerd", True, False),
        ("present", "containerd", True, True),
        ("present", "docker", False, True),
        ("absent", "docker", True, False),
    ],
)
def test_it_is_left_to_us_where_docker_runs_the_containers(
    state: str, engine: str, available: bool, wanted: bool
) -> None:
    assert agent.is_wanted(state, engine, available) == wanted


@pytest.mark.parametrize(
    ("facts", "wanted", "action", "reason"),
    [
        (FRESH, RELEASE, "install", f"{agent.PROGRAM}: absent → {RELEASE}"),
        (IN_FORCE, RELEASE, "ok", ""),
        (IN_FORCE._replace(digest="0" * 64), RELEASE, "change", f"0.1.0-{'0' * 12} → {RELEASE}"),
        (IN_FORCE._replace(unit="x"), RELEASE, "change", f"{agent.UNIT_FILE} differs"),
        (IN_FORCE._replace(unit=None), RELEASE, "change", f"{agent.UNIT_FILE} is absent"),
        (IN_FORCE._replace(enabled=False), RELEASE, "change", "is not enabled"),
        (IN_FORCE._replace(runs=False), RELEASE, "change", "does not run"),
        (IN_FORCE, "", "remove", "slices of this host are the device plugin's now"),
        (FRESH, "", "ok", ""),
        (IN_FORCE._replace(record={}), "", "ok", ""),
        (IN_FORCE._replace(record={}), RELEASE, "blocked", "not installed by us; move it away"),
    ],
)
def test_the_plan(facts: agent.Facts, wanted: str, action: str, reason: str) -> None:
    decision = agent.plan(facts, wanted)
    assert decision.action == action
    assert reason in decision.reason if reason else decision.reason == ""


def test_a_docker_host_gets_it_by_the_plan_of_the_whole_host(tmp_path: Path) -> None:
    root = hostroot.bare(tmp_path / "host")
    hostroot.put(root, "/usr/bin/dockerd", "", 0o755)
    host, desired = Host(str(root)), hostroot.desired()

    def planned(**asked: object) -> tuple[str, str]:
        desired["xpu_agent"] = {"state": "auto", "version": "", "releases": {}, **asked}
        steps = plan.plan(plan.observe(host, desired), desired)
        step = next(step for step in steps if step.component == "xpu_agent")
        return step.action, step.reason

    architectures: dict[str, list[str]] = desired["architectures"]  # type: ignore[assignment]
    architectures["xpu_agent"] = ["x86_64"]
    assert planned(releases={"x86_64": RELEASE})[0] == "install"
    assert planned()[0] == "ok"  # the manifest has none
    architectures["xpu_agent"] = []
    action, reason = planned(state="present")
    assert action == "blocked" and "the manifest has xpu-agent" in reason
    hostroot.put(root, "/var/lib/kubelet/config.yaml", "")  # a node of the cluster
    assert planned(releases={"x86_64": RELEASE})[0] == "ok"


def test_it_comes_and_goes_without_a_trace(host: Host) -> None:
    before = sorted(Path(host.root).rglob("*"))
    assert xpu_agent.converge(host, params(), True)["changed"]
    assert sorted(Path(host.root).rglob("*")) == before
    first = xpu_agent.converge(host, params(), False)
    assert first["changed"] and RELEASE in first["diff"]["after"]
    assert host.read_bytes(agent.PROGRAM) == PROGRAM
    assert host.program(agent.PROGRAM)  # it may be run
    assert host.link(agent.WANTED_BY) == agent.UNIT_FILE
    again = xpu_agent.converge(host, params(), False)
    assert not again["changed"] and again["diff"]["before"] == again["diff"]["after"]
    assert again["diff"]["after"] == first["diff"]["after"]
    gone = params(state="absent")
    assert xpu_agent.converge(host, gone, True)["changed"] and host.exists(agent.PROGRAM)
    assert xpu_agent.converge(host, gone, False)["changed"]
    assert not xpu_agent.converge(host, gone, False)["changed"]
    left = [path for path in Path(host.root).rglob("*") if not path.is_dir()]
    assert left == [path for path in before if not path.is_dir()]


def test_a_host_that_joined_a_cluster_loses_it(host: Host) -> None:
    xpu_agent.converge(host, params(), False)
    assert xpu_agent.converge(host, params(state="auto", version="", sha256=""), False)["changed"]
    assert not host.exists(agent.UNIT_FILE)


def test_somebody_elses_program_is_left_alone(host: Host) -> None:
    host.write(agent.PROGRAM, "theirs")
    with pytest.raises(XpuError, match="not installed by us; move it away"):
        xpu_agent.converge(host, params(), False)
    assert not xpu_agent.converge(host, params(state="absent"), False)["changed"]
    assert host.read(agent.PROGRAM) == "theirs"


def test_an_artefact_that_is_not_there_changes_nothing_but_the_record(host: Host) -> None:
    with pytest.raises(XpuError, match=r"The program /gone is not on the host"):
        xpu_agent.converge(host, params(program="/gone"), False)
    assert not host.exists(agent.PROGRAM)
    assert xpu_agent.converge(host, params(), False)["changed"]


@pytest.mark.parametrize(
    ("active", "listing", "state", "reason"),
    [
        ("active", 0, "ok", ""),
        ("failed", 0, "failed", "xpu-agent.service: failed"),
        ("active", 1, "failed", "slice list: rc 1, broken"),
    ],
)
def test_the_verdict_asks_systemd_and_the_program(
    tmp_path: Path, active: str, listing: int, state: str, reason: str
) -> None:
    hostroot.put(tmp_path, "/usr/bin/systemctl", "", 0o755)
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin/gpu-device-plugin").write_bytes(PROGRAM)
    (tmp_path / "usr/local/bin/gpu-device-plugin").chmod(0o755)
    answers = {"is-active": Completed(0, f"{active}\n"), "slice": Completed(listing, "", "broken")}
    host = Host(str(tmp_path), lambda argv, timeout_s: answers[argv[1]])
    found = judge.judge_agent(host, RELEASE)
    assert (found.state, found.reason) == (state, reason)
    assert judge.judge_agent(host, f"0.1.0-{'0' * 12}").state == "failed"
    assert judge.judge_agent(Host(str(tmp_path / "none")), RELEASE).state == "absent"
    assert judge.judge_agent(host, "").state == "ok"


def test_the_unit_is_confined_and_ready_before_containers_start() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(agent.UNIT_TEXT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"] == f"{agent.PROGRAM} agent"
    assert service["ProtectSystem"] == "strict"
    assert "CAP_NET_ADMIN" not in service["CapabilityBoundingSet"]
    assert "docker.service" in unit["Unit"]["Before"].split()
