# SPDX-License-Identifier: GPL-3.0-or-later
"""Registrations with flexnpud: there and back, over a stand-in that answers as agreed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _flexnpu as flexnpu
from ansible_collections.flexai.xpu.plugins.module_utils import _flexnpu_http as http
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import flexnpu as module

TOKEN = "s3cret"


class Daemon(ThreadingHTTPServer):
    """flexnpud's routes, replies and refusals, without a scheduler."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tasks: dict[str, dict[str, Any]] = {}
        self.garbage = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Daemon

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def _say(self, code: int, said: dict[str, Any] | str) -> None:
        text = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _allowed(self) -> bool:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.headers["Authorization"] == f"Bearer {TOKEN}":
            return True
        self._say(401, {"status": "NOK", "message": "token"})
        return False

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.server.garbage:
            self._say(200, "<html>another program</html>")
            return
        usage = {"aicore_usage": 0, "memory_usage": 0}
        listed = [{**task, **usage} for task in self.server.tasks.values()]
        self._say(200, {"status": "OK", "flexnpus": listed})

    def do_POST(self) -> None:
        if not self._allowed():
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["flexnpu_id"]
        if self.path == flexnpu.UNREGISTER:
            self.server.tasks.pop(name)
        elif body["npu"] == 7:
            self._say(200, {"status": "NOK", "message": "unknown npu 7"})
            return
        else:
            self.server.tasks[name] = body
        self._say(200, {"status": "OK", "message": ""})


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def converge(
    daemon: Daemon, name: str = "t1", check: bool = False, token: str = TOKEN, **more: Any
) -> dict[str, Any]:
    params = {
        "flexnpu_id": name,
        "state": "present",
        "npu": 0,
        "chip": 0,
        "aicore_alloc": 2,
        "memory_alloc": 30720,
        "entity": "",
        "priority": 0,
        **more,
    }
    client = flexnpu.Client(http.sender(daemon.url, token))
    return module.converge(params, check, client, quota=10)


def refused(daemon: Daemon, *args: Any, **more: Any) -> str:
    with pytest.raises(XpuError) as caught:
        converge(daemon, *args, **more)
    return str(caught.value)


def test_predicted_there_silent_changed_and_back(daemon: Daemon) -> None:
    predicted = converge(daemon, check=True)
    assert daemon.tasks == {}
    done = converge(daemon)
    assert done["diff"] == predicted["diff"]
    assert daemon.tasks["t1"] == {
        "flexnpu_id": "t1",
        "entity": "",
        "npu": 0,
        "chip": 0,
        "aicore_alloc": 2,
        "memory_alloc": 30720,
        "priority": 0,
    }
    daemon.asked.clear()
    assert not converge(daemon)["changed"]
    assert daemon.asked == ["GET /device/flexnpu-info"]
    assert converge(daemon, aicore_alloc=5)["changed"]
    assert daemon.tasks["t1"]["aicore_alloc"] == 5
    assert converge(daemon, state="absent")["flexnpus"] == []
    assert not converge(daemon, state="absent")["changed"]


def test_two_tasks_share_up_to_the_quota(daemon: Daemon) -> None:
    converge(daemon, "small", aicore_alloc=2)
    converge(daemon, "large", aicore_alloc=8)
    told = refused(daemon, "third", aicore_alloc=1, check=True)
    assert "aicore_alloc 1 of third is over what is left on NPU 0: 10 of 10 (quota)" in told
    assert converge(daemon, "third", aicore_alloc=1, npu=1)["changed"], "another NPU has its own"
    assert converge(daemon, "large", aicore_alloc=7)["changed"], "its own part is not in its way"


def test_what_the_daemon_refuses_is_told_and_the_former_comes_back(daemon: Daemon) -> None:
    converge(daemon)
    assert "flexnpud refused /device/register: unknown npu 7" in refused(daemon, npu=7)
    assert daemon.tasks["t1"]["npu"] == 0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"aicore_alloc": 0}, "aicore_alloc is 0. Remedy: give 1 to 10"),
        ({"aicore_alloc": 11}, "0 of 10 (quota) are taken"),
        ({"priority": 10}, "priority is 10. Remedy: give 0 (low) to 9 (high)"),
    ],
)
def test_values_out_of_range(daemon: Daemon, more: dict[str, Any], text: str) -> None:
    assert text in refused(daemon, **more)
    assert daemon.tasks == {}


def test_without_its_token_it_says_where_that_is(daemon: Daemon) -> None:
    assert "for want of its token (HTTP 401)" in refused(daemon, token="")


def test_another_program_at_its_place_is_no_daemon(daemon: Daemon) -> None:
    daemon.garbage = True
    assert "no status OK or NOK: '<html>another program" in refused(daemon)


def test_nobody_there_is_told(daemon: Daemon) -> None:
    send = http.sender("http://127.0.0.1:1", "")
    with pytest.raises(
        http.NobodyThere, match=r"flexnpud does not answer at http://127\.0\.0\.1:1"
    ):
        flexnpu.Client(send).tasks()


@pytest.mark.parametrize(
    ("conf", "quota"),
    [
        (None, 10),
        ("[ticker]\nticker_interval = 100\nquota = 16\n", 16),
        ("[ticker]\nquota=8 # slots\n[server]\nport=8080\n", 8),
        ("[other]\nquota=4\n", 10),
        ("quota=12\n", 12),
    ],
)
def test_the_quota_is_the_configurations(conf: str | None, quota: int) -> None:
    assert flexnpu.quota_of(conf) == quota
