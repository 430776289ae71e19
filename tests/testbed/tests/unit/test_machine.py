# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine lacks, and what is said about it; the lock."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from testbed import machine
from testbed.errors import TestbedError


def test_missing_commands_become_packages_named_once() -> None:
    present = set(machine.TOOLS) - {"podman", "nsenter", "setpriv"}
    assert machine.missing_packages(present.__contains__, netavark=False) == (
        "netavark",
        "podman",
        "util-linux",
    )
    assert machine.missing_packages(set(machine.TOOLS).__contains__, netavark=True) == ()


def test_root_with_apt_installs() -> None:
    assert machine.decide(machine.Finding(True, ("podman",), apt=True)) == ("podman",)


def test_no_root_is_told_first() -> None:
    with pytest.raises(TestbedError, match="needs root") as refusal:
        machine.decide(machine.Finding(False, ("podman",), apt=True))
    assert "sudo" in refusal.value.remedy


def test_no_podman_and_no_apt_names_the_packages() -> None:
    with pytest.raises(TestbedError, match="missing on this machine: podman, runc"):
        machine.decide(machine.Finding(True, ("podman", "runc"), apt=False))


def test_a_failed_command_tells_its_words_and_its_output() -> None:
    with pytest.raises(TestbedError, match=r"^sh -c 'echo no >&2; exit 3' exited 3: no$"):
        machine.run(["sh", "-c", "echo no >&2; exit 3"])


def test_two_commands_on_one_testbed_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOCKS", tmp_path)
    order: list[str] = []
    waiting = threading.Event()
    monkeypatch.setattr(machine, "say", lambda _: waiting.set())

    def second() -> None:
        with machine.locked("x"):
            order.append("second")

    with machine.locked("x", remove=True):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
