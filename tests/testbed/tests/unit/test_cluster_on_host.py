# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that makes a host a node: what it writes, what it leaves, when it restarts units."""

from __future__ import annotations

import base64
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from testbed.cluster import on_host


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "record/written.json"
    monkeypatch.setattr(on_host, "RECORD", path)
    return path


def spec(text: str, mode: int = 0o644, keep: bool = False) -> dict[str, Any]:
    return {"data": base64.b64encode(text.encode()).decode(), "mode": mode, "keep": keep}


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "etc/thing"
    assert on_host.put_files({str(path): spec("a", 0o600)}) == [str(path)]
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("a", 0o600)
    assert on_host.put_files({str(path): spec("a", 0o600)}) == []


def test_content_and_mode_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    on_host.put_files({str(path): spec("a")})
    path.write_text("b")
    assert on_host.put_files({str(path): spec("a")}) == [str(path)]
    path.chmod(0o666)
    assert on_host.put_files({str(path): spec("a")}) == [str(path)]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_kept_file_keeps_its_administrators_edit(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    on_host.put_files({str(path): spec("ours", keep=True)})
    path.write_text("theirs")
    assert on_host.put_files({str(path): spec("ours", keep=True)}) == []
    assert path.read_text() == "theirs"


def test_a_kept_file_follows_a_new_order_and_comes_back_when_lost(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    on_host.put_files({str(path): spec("ours", keep=True)})
    path.write_text("theirs")
    assert on_host.put_files({str(path): spec("ours 2", keep=True)}) == [str(path)]
    path.unlink()
    assert on_host.put_files({str(path): spec("ours 2", keep=True)}) == [str(path)]


def test_a_packages_file_is_not_kept(tmp_path: Path) -> None:
    """/etc/containerd/config.toml exists before us on Debian: it is nobody's edit."""
    path = tmp_path / "config.toml"
    path.write_text("the package's")
    assert on_host.put_files({str(path): spec("ours", keep=True)}) == [str(path)]


def test_links_are_made_and_moved(tmp_path: Path) -> None:
    link = str(tmp_path / "kubectl")
    assert on_host.put_links({link: "/a"}) == [link]
    assert on_host.put_links({link: "/a"}) == []
    assert on_host.put_links({link: "/b"}) == [link]
    assert os.readlink(link) == "/b"


def running_since(seconds_ago: float) -> dict[str, str]:
    """A unit's state in the form of systemctl, on Debian 12 and Ubuntu 24.04 alike."""
    when = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return {
        "ActiveState": "active",
        "InactiveExitTimestamp": when.strftime("%a %Y-%m-%d %H:%M:%S.%f UTC"),
    }


def test_a_unit_restarts_for_a_file_that_is_newer(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("")
    assert on_host.must_restart(running_since(60), [str(path)])


def test_a_unit_started_after_its_files_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("")
    time.sleep(0.02)
    assert not on_host.must_restart(running_since(0), [str(path)])


def test_a_clock_that_is_set_afterwards_restarts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    path.write_text("")
    state = running_since(-0.1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    assert not on_host.must_restart(state, [str(path)])


def test_a_unit_that_never_ran_has_no_start() -> None:
    assert on_host.started_at({"InactiveExitTimestamp": ""}) == 0.0


@pytest.mark.parametrize("active", ["inactive", "failed", "deactivating"])
def test_a_unit_that_is_down_is_started(active: str) -> None:
    assert on_host.must_restart({**running_since(0), "ActiveState": active}, [])
