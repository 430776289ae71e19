# SPDX-License-Identifier: Apache-2.0
"""What the machine lacks, and what people are told about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from xpubuild import system
from xpubuild.system import Machine
from xpubuild.toolchain import ToolchainError


def test_a_missing_command_is_told_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "have", lambda command: command != "gpgv")
    assert system.look({"gpgv": "gpgv-package", "tar": "tar"}).missing == ("gpgv-package",)


def test_without_root_the_remedy_is_a_whole_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["build/venv/bin/python", "-m", "xpubuild", "dist"])
    text = system.refusal(Machine(root=False, missing=("debootstrap",), apt=True), "the image")
    assert text is not None
    assert text.startswith("the image needs root and debootstrap\n")
    assert "remedy: sudo apt-get install -y -q --no-install-recommends debootstrap && " in text
    assert text.endswith(" build/venv/bin/python -m xpubuild dist")


def test_without_apt_the_packages_are_named() -> None:
    text = system.refusal(Machine(root=True, missing=("gpgv",), apt=False), "the image")
    assert text is not None and "the image needs gpgv, which this machine lacks" in text


def test_root_with_apt_or_with_everything_goes_on() -> None:
    assert system.refusal(Machine(root=True, missing=("gpgv",), apt=True), "x") is None
    assert system.refusal(Machine(root=True, missing=(), apt=False), "x") is None


class Apt:
    """Stands in for apt-get; *failing* sub-commands end with an error."""

    def __init__(self, failing: Sequence[str]) -> None:
        self.failing = failing
        self.ran: list[str] = []

    def __call__(
        self, argv: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] = {}
    ) -> str:
        self.ran.append(str(argv[1]))
        if argv[1] in self.failing:
            raise ToolchainError("E: apt's own words")
        return ""


def test_lists_that_cannot_be_read_anew_do_not_stop_an_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apt = Apt(failing=["update"])
    monkeypatch.setattr(system, "run", apt)
    system.install(["gpgv"])
    assert apt.ran == ["update", "install"]


def test_a_failed_installation_has_apts_words_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "run", Apt(failing=["install"]))
    with pytest.raises(ToolchainError, match=r"(?s)apt's own words.*remedy: apt-get update && "):
        system.install(["gpgv"])
