# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of real members, for tests and bench: run.sh is PID 1 of a namespace, as in a container.

Each member has a network namespace with an address, on a bridge in another one; nothing of it is
in the machine's own. ``Member.start`` again is what a kubelet does with a container that has ended:
the state directory (an emptyDir) stays, all else is new. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

SCRIPTS = Path(__file__).resolve().parents[2] / "roles/inference_service/files"
STUB = Path(__file__).with_name("stub_engine.py")
# A condition is waited for; this is when to give up on a machine that does ten other things.
PATIENCE_S = float(os.environ.get("PATIENCE", "180"))
CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)
T = TypeVar("T")


def wait_for(
    condition: Callable[[], Any],
    what: str,
    story: Callable[[], str] = lambda: "",
    patience_s: float = PATIENCE_S,
) -> Any:
    """The first true value of *condition*; where none comes, *story* tells what came instead."""
    until = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"never came to be: {what}\n{story()}"
        time.sleep(0.05)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def tool(name: str) -> str:
    """Found here: a member's PATH may be empty."""
    return shutil.which(name) or name


class Network:
    """A bridge and a namespace for each member; the leader is 10.99.0.1, the client 10.99.0.254."""

    def __init__(self, members: int) -> None:
        self._name = f"fxg{os.getpid()}-{next(_numbers)}"
        self.namespaces = [f"{self._name}-{index}" for index in range(members)]
        self._client = ThreadPoolExecutor(4, initializer=self._move)

    def __enter__(self) -> Network:
        run("ip", "netns", "add", self._name)
        run("ip", "-n", self._name, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._name, "addr", "add", "10.99.0.254/24", "dev", "br0")
        run("ip", "-n", self._name, "link", "set", "br0", "up")
        for index, namespace in enumerate(self.namespaces):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", self._name, "link", "add", f"m{index}", "type", "veth",
                "peer", "name", "eth0", "netns", namespace)  # fmt: skip
            run("ip", "-n", self._name, "link", "set", f"m{index}", "master", "br0", "up")
            address = f"{self.address(index)}/24"
            run("ip", "-n", namespace, "addr", "add", address, "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.shutdown()
        for namespace in (*self.namespaces, self._name):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    @staticmethod
    def address(index: int) -> str:
        return f"10.99.0.{index + 1}"

    def cut(self, index: int) -> None:
        run("ip", "-n", self._name, "link", "set", f"m{index}", "down")

    def mend(self, index: int) -> None:
        run("ip", "-n", self._name, "link", "set", f"m{index}", "up")

    def _move(self) -> None:
        """A thread may live in another network than its process."""
        descriptor = os.open(f"/run/netns/{self._name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def ask(
        self, url: str, body: Mapping[str, object] | None = None, patience_s: float = PATIENCE_S
    ) -> tuple[int, str]:
        """Status (0: no answer) and text, as the client."""
        return self.call(_ask, url, body, patience_s)

    def call(self, what: Callable[..., T], *words: object) -> T:
        """Do it where the client is."""
        return self._client.submit(what, *words).result()


def _ask(url: str, body: Mapping[str, object] | None, patience_s: float) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=patience_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


@dataclass(frozen=True)
class Process:
    """One process as the machine sees it."""

    pid: int
    name: str


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    return []


def descendants(pid: int) -> Iterator[Process]:
    for child in children(pid):
        with contextlib.suppress(OSError):
            yield Process(child, Path(f"/proc/{child}/comm").read_text().strip())
        yield from descendants(child)


class Member:
    """One pod's container, over its restarts."""

    def __init__(
        self, home: Path, namespace: str, scripts: Path, environment: Mapping[str, str]
    ) -> None:
        self.state_directory = home / "run"
        self.state_directory.mkdir(parents=True)
        self.log = home / "log"
        self.termination = home / "termination-log"
        self._namespace, self._scripts = namespace, scripts
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "FLEXAI_STATE_DIR": str(self.state_directory),
            "FLEXAI_TERMINATION_LOG": str(self.termination),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def _inside(self, script: str, *words: str) -> list[str]:
        # A namespace's first process cannot be signalled from inside as others can: as in a pod.
        return [tool("ip"), "netns", "exec", self._namespace,
                tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child",
                "/bin/bash", str(self._scripts / script), *words]  # fmt: skip

    def start(self) -> None:
        self.termination.touch()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._inside("run.sh"), env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.starts += 1

    def pid(self) -> int:
        """Of the container's PID 1."""

        def first() -> int | None:
            assert self.process is not None
            found = children(self.process.pid)
            return found[0] if found else None

        return int(wait_for(first, f"a first process in {self._namespace}"))

    def engine(self) -> list[Process]:
        """The stub's processes, and the shell around them."""
        everything = list(descendants(self.pid()))
        shells = [
            Process(process.pid, process.name)
            for process in everything
            if any(p.name.startswith("stub-") for p in descendants(process.pid))
            and process.name == "bash"
        ]
        return shells + [p for p in everything if p.name.startswith("stub-")]

    def engine_process(self, kind: str) -> int:
        """The pid of the one called *kind*: main, core, rank."""
        return int(
            wait_for(
                lambda: next((p.pid for p in self.engine() if p.name == f"stub-{kind}"), None),
                f"a process stub-{kind}",
            )
        )

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Signal the container's PID 1, from outside."""
        os.kill(self.pid(), signal_number)

    def ended(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def wait_end(self) -> int:
        wait_for(lambda: self.ended() is not None, f"the end of {self._namespace}")
        assert self.process is not None and self.process.returncode is not None
        return self.process.returncode

    def state(self) -> dict[str, str]:
        """The state file's words."""
        with contextlib.suppress(OSError):
            line = (self.state_directory / "state").read_text(encoding="utf-8")
            return dict(word.split("=", 1) for word in line.rstrip().split("\t"))
        return {}

    def probe(self, question: str) -> tuple[int, str]:
        """As a kubelet: in the container, with its environment. Status and what it says."""
        return self._call("probe.sh", question)

    def prestop(self) -> tuple[int, str]:
        return self._call("prestop.sh")

    def _call(self, script: str, *words: str) -> tuple[int, str]:
        inside = [tool("nsenter"), "--target", str(self.pid()), "--net", "--pid", "--mount"]
        done = subprocess.run(
            [*inside, "/bin/bash", str(self._scripts / script), *words], env=self.environment,
            text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout.strip()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()


class Group:
    """A leader and its workers."""

    def __init__(
        self,
        directory: Path,
        network: Network,
        environment: Mapping[str, str] | None = None,
        fragments: Mapping[str, str] | None = None,
    ) -> None:
        self.network = network
        size = len(network.namespaces)
        scripts = directory / "flexai"
        deliver(scripts, fragments or stub_fragments())
        shared = {
            "LWS_GROUP_SIZE": str(size),
            "LWS_LEADER_ADDRESS": network.address(0),
            "FLEXAI_GROUP_FAILURE_TIMEOUT": "5",
            **(environment or {}),
        }
        self.members = [
            Member(
                directory / f"member-{index}",
                namespace,
                scripts,
                {"LWS_WORKER_INDEX": str(index), "POD_IP": network.address(index), **shared},
            )
            for index, namespace in enumerate(network.namespaces)
        ]
        self.leader, self.workers = self.members[0], self.members[1:]

    def start(self) -> None:
        for member in self.members:
            member.start()

    def stop(self) -> None:
        for member in self.members:
            member.stop()

    def api(self, path: str) -> str:
        return f"http://{self.network.address(0)}:8000{path}"

    def complete(self, tokens: int = 1, patience_s: float = PATIENCE_S) -> tuple[int, str]:
        body = {"model": "stub", "prompt": "1", "max_tokens": tokens}
        return self.network.ask(self.api("/v1/completions"), body, patience_s)

    def epoch(self) -> str:
        """The epoch that all members serve in, or none."""
        states = [member.state() for member in self.members]
        epochs = {state.get("epoch", "") for state in states}
        serving = all(state.get("phase") == "serving" for state in states)
        return epochs.pop() if serving and len(epochs) == 1 else ""

    def wait_serving(self, but: str = "") -> str:
        """Until all members serve in one epoch, another than *but*; a token proves it."""

        def another() -> str:
            epoch = self.epoch()
            return "" if epoch == but else epoch

        epoch = str(wait_for(another, "a serving group", self.logs))
        status, text = self.complete()
        assert status == 200, f"{text}\n{self.logs()}"
        return epoch

    def logs(self) -> str:
        parts = []
        for index, member in enumerate(self.members):
            text = member.log.read_text(errors="replace") if member.log.exists() else ""
            parts.append(f"--- member {index}\n{text[-3000:]}")
        return "\n".join(parts)


def deliver(directory: Path, fragments: Mapping[str, str]) -> None:
    """/opt/flexai as the ConfigMap has it."""
    directory.mkdir(parents=True)
    for source in SCRIPTS.iterdir():
        if source.suffix in (".sh", ".py"):
            shutil.copy(source, directory)
    for name, text in fragments.items():
        (directory / name).write_text(text, encoding="utf-8")


def stub_fragments(before: str = "") -> dict[str, str]:
    """leader.sh and worker.sh that run the stub; its interpreter is not looked for in PATH."""
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    return {
        f"{role}.sh": f"# SPDX\n{before}\n{python} {STUB} {role}\n" for role in ("leader", "worker")
    }
