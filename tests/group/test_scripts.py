# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripts' settings and what the probes make of a state, without a group."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from group.members import SCRIPTS, deliver

FOLLOWER = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "127.0.0.1"}


def call(
    script: str, environment: Mapping[str, str], *words: str, directory: Path = SCRIPTS
) -> tuple[int, list[str]]:
    """Status, and the lines that it says. No program is to be found but bash."""
    done = subprocess.run(
        ["/bin/bash", str(directory / script), *words],
        env={"PATH": "/nowhere", **environment},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"FLEXAI_DRAIN_SECONDS": "30s"},
         "run.sh: FLEXAI_DRAIN_SECONDS=30s; allowed: a whole number from 0 to 86400, such as 30"),
        ({"FLEXAI_GROUP_FAILURE_TIMEOUT": "0"},
         "run.sh: FLEXAI_GROUP_FAILURE_TIMEOUT=0; "
         "allowed: a whole number from 2 to 86400, such as 60"),
        ({"FLEXAI_HEARTBEAT_SECONDS": "-1"},
         "run.sh: FLEXAI_HEARTBEAT_SECONDS=-1; allowed: a whole number from 1 to 3600, such as 5"),
        ({"FLEXAI_API_PORT": "70000"},
         "run.sh: FLEXAI_API_PORT=70000; allowed: a whole number from 1 to 65535, such as 8000"),
        ({"FLEXAI_START_TIMEOUT": "$(reboot)"},
         "run.sh: FLEXAI_START_TIMEOUT=\\$\\(reboot\\); "
         "allowed: a whole number from 1 to 604800, such as 1800"),
        ({"LWS_WORKER_INDEX": "2"},
         "run.sh: LWS_WORKER_INDEX=2; allowed: a whole number from 0 to 1, such as 0"),
        ({"LWS_WORKER_INDEX": "", "HOSTNAME": "chat"},
         "run.sh: LWS_WORKER_INDEX=chat; allowed: a whole number from 0 to 1, such as 0"),
        ({"FLEXAI_BACKEND": "horovod"},
         "run.sh: FLEXAI_BACKEND=horovod; allowed: mp, ray, dp, sglang, none"),
        ({"FLEXAI_BACKEND": "none"},
         "run.sh: FLEXAI_BACKEND=none; allowed: none for LWS_GROUP_SIZE=1 only"),
        ({"LWS_LEADER_ADDRESS": ""},
         "run.sh: LWS_LEADER_ADDRESS=''; allowed: the leader's name or address"),
    ],
)  # fmt: skip
def test_a_setting_that_means_nothing_is_told_in_one_line(
    settings: dict[str, str], said: str
) -> None:
    assert call("run.sh", {**FOLLOWER, **settings}) == (2, [said])


def test_all_bad_settings_are_told_at_once() -> None:
    bad = {"FLEXAI_DRAIN_SECONDS": "x", "FLEXAI_PRESTOP_SECONDS": "y"}
    status, said = call("run.sh", {**FOLLOWER, **bad})
    assert status == 2
    assert [line.split("=")[0] for line in said] == [f"run.sh: {name}" for name in bad]


def test_a_number_with_leading_zeros_is_decimal(tmp_path: Path) -> None:
    """08 would be no octal number."""
    settings = {**FOLLOWER, "FLEXAI_DRAIN_SECONDS": "08", "FLEXAI_STATE_DIR": str(tmp_path)}
    assert call("probe.sh", settings, "startup") == (
        1, [f"startup: no state in {tmp_path}/state: run.sh has not begun"],
    )  # fmt: skip


@pytest.mark.parametrize(("hostname", "role"), [("chat-g0-0", "leader"), ("chat-g0-1", "worker")])
def test_the_role_is_the_ordinal_of_the_host_name(hostname: str, role: str, tmp_path: Path) -> None:
    settings = {**FOLLOWER, "LWS_WORKER_INDEX": "", "HOSTNAME": hostname}
    deliver(tmp_path / "flexai", {})
    status, said = call("run.sh", settings, directory=tmp_path / "flexai")
    assert status == 2
    assert said == [
        f"run.sh: {tmp_path}/flexai/{role}.sh: no such file; "
        f"it has to hold the command of the {role}"
    ]


def test_a_single_pod_needs_no_ordinal(tmp_path: Path) -> None:
    deliver(tmp_path / "flexai", {"leader.sh": "exit 5\n"})
    settings = {"HOSTNAME": "chat-7d9f-x2x", "FLEXAI_STATE_DIR": str(tmp_path),
                "FLEXAI_MAX_GROUP_RESTARTS": "0"}  # fmt: skip
    status, said = call("run.sh", settings, directory=tmp_path / "flexai")
    assert status == 1
    assert said[-1].endswith(
        "failed: restart budget used up (0 in 3600 s); last: its engine has ended with status 5"
    )


def test_the_environment_of_a_role_is_its_own(tmp_path: Path) -> None:
    fragments = {
        "leader.sh": 'printf "%s\\n" "$GREETING" "$LWS_WORKER_INDEX" "$FLEXAI_LEADER_IP"\n',
        "leader.env": "export GREETING='it'\\''s'\n",
        "worker.env": "export GREETING=other\n",
    }
    deliver(tmp_path / "flexai", fragments)
    settings = {"FLEXAI_STATE_DIR": str(tmp_path), "FLEXAI_MAX_GROUP_RESTARTS": "0",
                "POD_IP": "127.0.0.9"}  # fmt: skip
    said = call("run.sh", settings, directory=tmp_path / "flexai")[1]
    assert [line for line in said if " run.sh " not in line] == ["it's", "0", "127.0.0.9"]


def uptime() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def state(tmp_path: Path, **words: object) -> dict[str, str]:
    """The environment of a probe that finds this state."""
    now = uptime()
    found = {"phase": "serving", "role": "leader", "since": now, "beat": now,
             "leader_ip": "127.0.0.1", "reason": "", **words}  # fmt: skip
    line = "\t".join(f"{key}={value}" for key, value in found.items())
    (tmp_path / "state").write_text(f"{line:<1023}\n", encoding="utf-8")
    return {"FLEXAI_STATE_DIR": str(tmp_path), "FLEXAI_API_PORT": "9", "FLEXAI_START_TIMEOUT": "90"}


@pytest.mark.parametrize(
    ("question", "found", "said"),
    [
        ("startup", {"phase": "waiting", "reason": "members not there: 1"},
         "startup: waiting: members not there: 1"),
        ("startup", {"phase": "forming"}, "startup: forming"),
        ("startup", {"phase": "waiting", "role": "worker"}, "startup: waiting"),
        ("readiness", {"phase": "forming", "role": "worker"}, "readiness: forming"),
        ("readiness", {"phase": "draining", "reason": "told to stop"},
         "readiness: draining: told to stop"),
        ("readiness", {}, "readiness: /health of the leader at 127.0.0.1 says 000"),
        ("liveness", {}, "liveness: /health says 000"),
        ("liveness", {"phase": "forming", "beat": -100},
         "liveness: run.sh has not been heard of for 100 s"),
        ("liveness", {"phase": "forming", "since": -200}, "liveness: forming for 200 s"),
        ("liveness", {"phase": "waiting", "since": -200}, "liveness: waiting for 200 s"),
    ],
)  # fmt: skip
def test_a_probe_that_fails_says_why(
    tmp_path: Path, question: str, found: dict[str, str | int], said: str
) -> None:
    moments = {k: uptime() + v for k, v in found.items() if isinstance(v, int)}
    status, lines = call("probe.sh", state(tmp_path, **{**found, **moments}), question)
    assert status == 1
    # A second may pass between the two of us.
    assert lines in ([said], [said.replace("00 s", "01 s")], [said.replace("00 s", "02 s")])


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("startup", {}),
        ("startup", {"phase": "forming", "role": "worker"}),
        ("liveness", {"role": "worker"}),
        ("liveness", {"phase": "forming"}),
        ("liveness", {"phase": "draining"}),
    ],
)
def test_a_probe_that_passes_says_nothing(
    tmp_path: Path, question: str, found: dict[str, str]
) -> None:
    assert call("probe.sh", state(tmp_path, **found), question) == (0, [])


def test_an_unknown_question_is_refused() -> None:
    said = "probe.sh: alive; allowed: startup, readiness, liveness"
    assert call("probe.sh", {}, "alive") == (2, [said])


def test_a_hook_waits_for_nobody_who_does_not_serve(tmp_path: Path) -> None:
    assert call("prestop.sh", {"FLEXAI_STATE_DIR": str(tmp_path)}) == (0, [])
    for role in ("leader", "worker"):
        assert call("prestop.sh", state(tmp_path, phase="waiting", role=role)) == (0, [])
    # and a worker for no leader who is gone
    assert call("prestop.sh", state(tmp_path, role="worker")) == (0, [])
