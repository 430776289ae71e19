# SPDX-License-Identifier: GPL-3.0-or-later
"""An artefact whose source is a URL: the host fetches it, and keeps it only when it is the one."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
MODULE = "ansible_collections.flexai.xpu.plugins.modules.artefact"
CONTENT = b"a release\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CACHED = f"var/cache/flexai-xpu/{SHA256}/xpu.tar"


class Source(http.server.BaseHTTPRequestHandler):
    """A site's web server; by its path, a request gets the file or a fault."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        # A proxy is asked for whole URLs.
        name = self.path.rpartition("/")[2]
        self.send_response(200 if name in ("xpu.tar", "short.tar") else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:5000] if name in ("short.tar", "torn.tar") else CONTENT)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what was asked."""


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Source)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


class Answer(NamedTuple):
    """What the module said on its standard output."""

    said: dict[str, Any]

    @property
    def failed(self) -> bool:
        return bool(self.said.get("failed"))


def fetch(
    tmp_path: Path, source: str, sha256: str = SHA256, check: bool = False, **environment: str
) -> Answer:
    """The module as the host runs it, for a host whose root is a directory."""
    entry = {
        "name": "xpu-runtime",
        "version": "1",
        "arch": "noarch",
        "kind": "tarball",
        "file": "xpu.tar",
        "source": source,
        "sha256": sha256,
    }
    arguments = {
        "root": str(tmp_path / "host"),
        "name": "xpu-runtime",
        "manifest": "manifest.yml",
        "candidates": [entry],
        "_ansible_check_mode": check,
    }
    (tmp_path / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("proxy")}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, str(tmp_path / "arguments.json")],
        env={**kept, "PYTHONPATH": str(REPOSITORY / "build/collections"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip().startswith("{"), done.stdout + done.stderr
    return Answer(json.loads(done.stdout))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "host").rglob("*"))


def test_the_host_fetches_once_and_keeps(tmp_path: Path, server: Server) -> None:
    done = fetch(tmp_path, f"{server.url}/xpu.tar")
    assert done.said["changed"] and done.said["present"], done
    assert (tmp_path / "host" / CACHED).read_bytes() == CONTENT
    again = fetch(tmp_path, f"{server.url}/xpu.tar")
    assert not again.said["changed"] and again.said["present"], again
    assert server.asked == ["/xpu.tar"]


def test_check_mode_asks_nobody(tmp_path: Path, server: Server) -> None:
    done = fetch(tmp_path, f"{server.url}/xpu.tar", check=True)
    assert done.said["changed"] and not done.said["present"], done
    assert server.asked == []
    assert files(tmp_path) == []


def test_the_hosts_proxy_is_asked(tmp_path: Path, server: Server) -> None:
    source = "http://artefacts.example.invalid/xpu.tar"
    done = fetch(tmp_path, source, http_proxy=server.url)
    assert not done.failed, done
    assert server.asked == [source]
    assert (tmp_path / "host" / CACHED).read_bytes() == CONTENT


def test_what_the_site_excepts_from_its_proxy_is_fetched_without(
    tmp_path: Path, server: Server
) -> None:
    nobody = "http://127.0.0.1:9"
    done = fetch(tmp_path, f"{server.url}/xpu.tar", http_proxy=nobody, no_proxy="127.0.0.1")
    assert not done.failed, done
    assert server.asked == ["/xpu.tar"]


FAULTS = {
    "not found": (
        "{url}/gone.tar",
        SHA256,
        "{url}/gone.tar answered 404 (HTTP Error 404: Not Found). Remedy: check the URL and the "
        "host's proxy variables, or give a file as source.",
    ),
    "an error page that breaks off": (
        "{url}/torn.tar",
        SHA256,
        "{url}/torn.tar gave a broken answer (IncompleteRead(5000 bytes read, 5000 more "
        "expected)). Remedy: check the URL",
    ),
    "wrong digest": (
        "{url}/xpu.tar",
        "0" * 64,
        f"xpu.tar (from {{url}}/xpu.tar) has SHA-256 {SHA256}, the manifest says {'0' * 64}. "
        "Remedy: fetch it from its vendor again;",
    ),
    "truncated": (
        "{url}/short.tar",
        SHA256,
        "{url}/short.tar broke off after 5000 of 10000 bytes. Remedy: run again; when it breaks "
        "off there each time, the server's file or a proxy is at fault.",
    ),
    "nobody answers": (
        "http://127.0.0.1:9/xpu.tar",
        SHA256,
        "http://127.0.0.1:9/xpu.tar can't be fetched (Request failed: <urlopen error [Errno 111] "
        "Connection refused>). Remedy: check the URL and the host's proxy variables, or give a "
        "file as source.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fetch_that_goes_wrong_is_named_and_leaves_nothing(
    fault: str, tmp_path: Path, server: Server
) -> None:
    source, sha256, text = FAULTS[fault]
    done = fetch(tmp_path, source.format(url=server.url), sha256)
    assert done.failed
    assert done.said["msg"].startswith(text.format(url=server.url)), done
    assert [path for path in files(tmp_path) if not path.is_dir()] == []
    assert list((tmp_path / "host").glob("var/cache/flexai-xpu/*")) == []
