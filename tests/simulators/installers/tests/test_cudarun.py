# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated CUDA installer refuses what NVIDIA would; cut off, it does nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from simulators.installers import cudarun

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the installer refuses others than root")


def run(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    root = file.parent / "root"
    root.mkdir(exist_ok=True)
    return subprocess.run(
        ["/bin/sh", str(file), *flags],
        env={**os.environ, "NVIDIA_SIM_ROOT": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def installed(file: Path) -> bool:
    return (file.parent / "root/usr/local").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--toolkit"], "the licence must be accepted, and there is no terminal to ask on"),
        (["--silent"], "nothing to install; name --toolkit."),
        (["--silent", "--toolkit", "--driver"], "the simulation has no driver in this file"),
        (["--silent", "--toolkits"], "unrecognized option '--toolkits'"),
        (
            ["--silent", "--toolkit", "--toolkitpath=cuda"],
            "unrecognized option '--toolkitpath=cuda'",
        ),
    ],
)
def test_what_it_refuses_leaves_nothing(flags: list[str], text: str, tmp_path: Path) -> None:
    file = cudarun.pack(tmp_path)
    done = run(file, *flags)
    assert done.returncode == 1
    assert text in done.stderr
    assert not installed(file)


@as_root
def test_a_misspelt_fault_is_no_healthy_run(tmp_path: Path) -> None:
    file = cudarun.pack(tmp_path)
    fault = tmp_path / "root/etc/nvidia-sim/fail-cuda"
    fault.parent.mkdir(parents=True)
    fault.write_text("halfway\n")
    done = run(file, "--silent", "--toolkit")
    assert done.returncode == 1
    assert "the simulation knows no fault 'halfway'" in done.stderr


@as_root
def test_cut_off_anywhere_it_does_nothing(tmp_path: Path) -> None:
    whole = cudarun.pack(tmp_path).read_text()
    for length in range(0, len(whole) - len('main "$@"; exit\n') + 1, 97):
        cut = tmp_path / "cut.run"
        cut.write_text(whole[:length])
        run(cut, "--silent", "--toolkit")
        assert not installed(cut), length


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert cudarun.pack(one).read_bytes() == cudarun.pack(two).read_bytes()
