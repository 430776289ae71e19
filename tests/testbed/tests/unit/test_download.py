# SPDX-License-Identifier: GPL-3.0-or-later
"""Released programs are fetched from a server, and installed only with the digest that the
repository pins; one that isn't pinned yet is, on its first use."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import download
from testbed.errors import TestbedError
from testbed.recipes import containerd, kubernetes
from xpubuild.cache import Cache

BASE = f"/v{kubernetes.VERSION}/bin/linux/amd64"


class Releases(http.server.BaseHTTPRequestHandler):
    """A release: programs, and the SHA-256 of each beside it."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        """Nothing: the test asks what was asked."""


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Releases)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        for name in kubernetes.PROGRAMS:
            self.release(name, f"#!/bin/sh\necho {name}\n".encode())

    def release(self, name: str, content: bytes) -> None:
        self.files[f"{BASE}/{name}"] = content
        self.files[f"{BASE}/{name}.sha256"] = hashlib.sha256(content).hexdigest().encode()


@pytest.fixture(autouse=True)
def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A lock file with nothing in it yet."""
    path = tmp_path / "lock" / "downloads.lock.json"
    path.parent.mkdir()
    monkeypatch.setattr(download, "LOCK", path)
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("TESTBED_SOURCE", "download")
        monkeypatch.setenv("TESTBED_DOWNLOAD_URL", f"http://127.0.0.1:{made.server_port}")
        yield made
        made.shutdown()


def test_the_released_programs_are_those_that_are_built(server: Server, tmp_path: Path) -> None:
    found = kubernetes.build(Cache(tmp_path))
    assert {path.name for path in found.iterdir()} >= set(kubernetes.PROGRAMS)
    for name in kubernetes.PROGRAMS:
        assert (found / name).read_bytes() == server.files[f"{BASE}/{name}"]
        assert (found / name).stat().st_mode & 0o777 == 0o755


def test_what_is_there_is_not_fetched_again_nor_asked_for(server: Server, tmp_path: Path) -> None:
    first = kubernetes.build(Cache(tmp_path))
    server.asked.clear()
    assert kubernetes.build(Cache(tmp_path)) == first
    assert server.asked == []


def test_first_use_pins_each_file_by_the_vendors_own_address(
    server: Server, tmp_path: Path, lock: Path
) -> None:
    kubernetes.build(Cache(tmp_path))
    pinned = json.loads(lock.read_text())["files"]
    assert pinned == {
        f"https://dl.k8s.io{BASE}/{name}": hashlib.sha256(
            server.files[f"{BASE}/{name}"]
        ).hexdigest()
        for name in kubernetes.PROGRAMS
    }


def test_what_broke_off_pins_nothing(server: Server, tmp_path: Path, lock: Path) -> None:
    server.files[f"{BASE}/kubelet"] = b""
    with pytest.raises(TestbedError):
        kubernetes.build(Cache(tmp_path))
    assert not lock.exists()


def test_a_server_that_changes_file_and_digest_together_is_not_believed(
    server: Server, tmp_path: Path
) -> None:
    kubernetes.build(Cache(tmp_path / "a"))
    server.release("kubelet", b"another kubelet")
    with pytest.raises(TestbedError, match=r"kubelet has SHA-256 .*, it must have .*lock.json is"):
        kubernetes.build(Cache(tmp_path / "b"))
    assert not list((tmp_path / "b").rglob("kubelet*"))


def test_a_lock_that_is_no_lock_is_named(server: Server, tmp_path: Path, lock: Path) -> None:
    lock.write_text('{"version": 1, "files": {"https://x/y": "first-use"}}')
    with pytest.raises(TestbedError, match="https://x/y has 'first-use', which is no SHA-256"):
        kubernetes.build(Cache(tmp_path))
    lock.write_text("{")
    with pytest.raises(TestbedError, match=r"can't be read .*restore it from git"):
        kubernetes.build(Cache(tmp_path))


def test_containerd_comes_out_of_its_released_archive(
    server: Server, tmp_path: Path, lock: Path
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as members:
        for name in (*containerd.PROGRAMS, "containerd-stress"):
            member = tarfile.TarInfo(f"bin/{name}")
            member.size = len(name)
            members.addfile(member, io.BytesIO(name.encode()))
    path, content = containerd.RELEASED.path, stream.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    server.files[path] = content
    server.files[f"{path}.sha256sum"] = f"{digest}  {containerd.RELEASED.name}\n".encode()
    found = containerd.build(Cache(tmp_path))
    assert {name: (found / name).read_text() for name in containerd.PROGRAMS} == {
        name: name for name in containerd.PROGRAMS
    }
    assert not (found / containerd.RELEASED.name).exists()
    assert json.loads(lock.read_text())["files"] == {containerd.RELEASED.address: digest}


@pytest.mark.parametrize("content", [b"tampered", b""], ids=["tampered", "broken off"])
def test_a_file_with_another_digest_is_not_installed(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    server.files[f"{BASE}/kubelet"] = content
    with pytest.raises(TestbedError, match=r"kubelet has SHA-256 .*, it must have .*Nothing was"):
        kubernetes.build(Cache(tmp_path))
    assert not list(tmp_path.rglob("kubelet*"))


def test_a_version_that_is_not_released_is_said(server: Server, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(TestbedError, match="was answered 404; check that this version is released"):
        kubernetes.build(Cache(tmp_path))


def test_a_digest_that_is_none_is_said(server: Server, tmp_path: Path) -> None:
    server.files[f"{BASE}/kubelet.sha256"] = b"<html>a proxy's login page"
    with pytest.raises(TestbedError, match=r"kubelet.sha256 says '<html>a', which is no SHA-256"):
        kubernetes.build(Cache(tmp_path))


def test_no_server_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESTBED_SOURCE", "download")
    monkeypatch.setenv("TESTBED_DOWNLOAD_URL", "http://127.0.0.1:9")
    with pytest.raises(TestbedError, match=r"can't be fetched .*check the network and https_proxy"):
        kubernetes.build(Cache(tmp_path))


def test_the_source_is_one_of_two() -> None:
    assert download.source({}) == "build"
    assert download.source({"TESTBED_SOURCE": "download"}) == "download"
    with pytest.raises(TestbedError, match="TESTBED_SOURCE is 'internet'; it may be build or"):
        download.source({"TESTBED_SOURCE": "internet"})
