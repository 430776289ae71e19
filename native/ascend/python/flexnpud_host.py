# SPDX-License-Identifier: Apache-2.0
"""A host with simulated NPUs, a flexnpud and tenants, for tests.

The referee is the chips' own ledger.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulators.ascend import simnpu

TENANT = Path(__file__).parents[1] / "tests" / "npu_tenant.py"
HANGS_SECONDS = 120  # ends a hang, judges nothing


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for a condition; only a hang ends it otherwise."""
    deadline = time.monotonic() + HANGS_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {HANGS_SECONDS} s in vain: {what}")
        time.sleep(0.02)


@dataclass
class Host:
    """One directory as flexnpud's own: configuration, ins/, pages/, log."""

    node: simnpu.Node
    built: Path
    directory: Path
    daemon: subprocess.Popen[bytes] | None = None
    tenants: list[subprocess.Popen[str]] = field(default_factory=list)
    url: str = ""

    def configure(self, **changes: str) -> None:
        """flexnpud.conf as shipped, with ``section__key`` changed; the port is any free one."""
        changes = {
            "server__port": "0",
            "flexnpu__dcmi_lib_file": str(self.node.driver / "lib/libdcmi.so"),
            **changes,
        }
        section, lines = "", []
        for line in (self.built / "share/flexnpud/flexnpud.conf").read_text().splitlines():
            key = f"{section}__{line.split('=')[0].strip()}"
            if line.startswith("["):
                section = line.strip("[]")
            elif key in changes:
                line = f"{line.split('=')[0]}= {changes.pop(key)}"
            lines.append(line)
        assert not changes, f"no such keys: {changes}"
        (self.directory / "flexnpud.conf").write_text("\n".join(lines) + "\n")

    @property
    def log(self) -> str:
        path = self.directory / "flexnpud.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Start flexnpud, and wait until it serves."""
        before = self.log.count("listens on")
        self.daemon = subprocess.Popen(
            [self.built / "bin/flexnpud"],
            cwd=self.directory,
            env={**os.environ, **self.node.environment},
        )
        process = self.daemon

        def serves() -> bool:
            assert process.poll() is None, self.log
            return self.log.count("listens on") > before

        until(serves, "flexnpud does not listen")
        self.url = f"http://127.0.0.1:{self.log.rsplit('port ', 1)[1].split()[0]}"

    def refused(self) -> str:
        """Run a flexnpud that is expected not to start; what it said."""
        done = subprocess.run(
            [self.built / "bin/flexnpud"],
            cwd=self.directory,
            env={**os.environ, **self.node.environment},
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
            check=False,
        )
        assert done.returncode == 1, done
        return done.stderr

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(how)
            self.daemon.wait()
            self.daemon = None

    def ask(
        self, path: str, body: Any = None, *, token: str = "", method: str = ""
    ) -> tuple[int, Any]:
        """Status and JSON answer of a route."""
        data = None
        if body is not None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method or None)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=HANGS_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def register(self, name: str, aicore: int, memory: int = 1024, **more: Any) -> tuple[int, Any]:
        body = {
            "flexnpu_id": name,
            "entity": f"of-{name}",
            "npu": 0,
            "chip": 0,
            "aicore_alloc": aicore,
            "memory_alloc": memory,
            **more,
        }
        return self.ask("/device/register", body)

    def environment(self, task: str) -> dict[str, str]:
        """What a container of *task* has: its pages, and the library before CANN's runtime."""
        room = self.directory / "pages" / task
        return {
            **os.environ,
            **self.node.environment,
            "XPU_CONFIG_PAGE": str(room / "etc/config.page"),
            "XPU_LEDGER_PAGE": str(room / "run/ledger.page"),
            "XPU_LOG": "1",
            "LD_PRELOAD": str(self.built / "lib/libascend_direct.so"),
        }

    def tenant(self, task: str, *words: object) -> subprocess.Popen[str]:
        """A process of *task*'s container."""
        process = subprocess.Popen(
            [sys.executable, str(TENANT), *map(str, words)],
            env=self.environment(task),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.tenants.append(process)
        return process

    def answer(self, task: str, *words: object) -> Any:
        """What a tenant that ends says."""
        out, _ = self.tenant(task, *words).communicate(timeout=HANGS_SECONDS)
        return json.loads(out)

    def busy_ns(self, *processes: subprocess.Popen[str]) -> list[int]:
        """Time each has used of the chip, all read at one instant."""
        ledger = json.loads(self.node.run("simnpu", "ledger", "--json", "--dead"))
        # A dead process may have had the same number: its time is a constant part of the sum.
        entries = [(entry["pid"], entry["busy_ns"]) for entry in ledger["processes"]]
        return [sum(ns for pid, ns in entries if pid == process.pid) for process in processes]

    def works(self, process: subprocess.Popen[str], more_ns: int = 20_000_000) -> None:
        """Wait until the process has used so much more of the chip."""
        before = self.busy_ns(process)[0]
        until(lambda: self.busy_ns(process)[0] >= before + more_ns, "the tenant gets no turn")

    def shares(self, *processes: subprocess.Popen[str], of_ns: int) -> list[float]:
        """Percent each used of what all of them used, over so much of the chip's time."""
        before = self.busy_ns(*processes)
        seen = before

        def enough() -> bool:
            nonlocal seen
            seen = self.busy_ns(*processes)
            return sum(seen) - sum(before) >= of_ns

        until(enough, "the tenants do not use the chip")
        used = [after - earlier for earlier, after in zip(before, seen, strict=True)]
        return [100 * part / sum(used) for part in used]

    def end(self) -> None:
        for process in self.tenants:
            process.kill()
            process.communicate()
        self.stop(signal.SIGKILL)
