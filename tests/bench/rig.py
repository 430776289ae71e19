# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the CUDA benchmarks run: a card, the driver, and slices as a container has them.

A tenant runs in a mount namespace of its own in which ``/etc/xpu/config.page`` and
``/run/xpu/ledger.page`` are the slice's, and ``libcuda.so.1`` is the *shipped* interception library
with the driver as ``libcuda-original.so`` beside it. Nothing is made on the host: ``/etc`` is seen
through a read-only overlay and ``/run`` is an empty tmpfs there.

The node agent runs beside the cards as on a host without Kubernetes: ``gpu-device-plugin agent``,
the shipped binary, with a node ledger that names the slices. ``AGENT=none`` leaves it out.

``DEVICE=real`` takes the machine's own driver and first card. There the referee is the tenant's
own count of completed kernels (a kernel spins for a known time), since a card has no exact ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xpu_pages
from simulators import simnode
from testbed.recipes import bench as bench_recipe
from xpu_pages import CardConfig, CardLedger, ProcessSlot
from xpubuild.cache import Cache
from xpubuild.recipes import cluster, cuda

from bench.benchlib import REPOSITORY
from bench.figures import Reading

PTX = REPOSITORY / "tests" / "simulators" / "kernels" / "spin.ptx"
# What a container's runtime does; later mounts cover earlier ones. "$1" is the slice's directory,
# "$2" a lower directory that only holds the mount point xpu.
ENTER = """
mount -t overlay overlay -o "lowerdir=$2:/etc" /etc
mount --bind "$1" /etc/xpu
mount -t tmpfs tmpfs /run
mkdir /run/xpu
mount --bind "$1" /run/xpu
shift 2
exec "$@"
"""


class RigError(RuntimeError):
    """The benchmark can't run; the message says what to do."""


class Tenant:
    """A running ``bench-load``: one question a line, one answer a line."""

    def __init__(self, process: subprocess.Popen[str], argv: Sequence[str]) -> None:
        self.process = process
        self._argv = argv
        self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RigError(f"{' '.join(self._argv)} ended with {code}; its words are above")
        return json.loads(line)

    def tell(self, question: str = "") -> None:
        """Ask without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The answer to the oldest question."""
        return self._read()

    def ask(self, question: object = "") -> Any:
        """Ask and wait."""
        self.tell(str(question))
        return self._read()

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        """Let it end; a tenant deep in debt is not waited for."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True)
class Place:
    """How a program meets the driver: bare, in a slice, or behind a preloaded interposer."""

    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """A container's slice of one card."""

    directory: Path
    place: Place
    uuid: str

    def regrant(self, **grant: Any) -> None:
        """Change the grant of running processes."""
        xpu_pages.change_config(self.directory / "config.page", [CardConfig(self.uuid, **grant)])

    def grant(self) -> CardConfig:
        """What its page grants now."""
        return xpu_pages.read_config(self.directory / "config.page")[0]

    def processes(self) -> tuple[ProcessSlot, ...]:
        """The processes that hold a slot of it."""
        return xpu_pages.read_ledger(self.directory / "ledger.page").processes

    def ledger(self) -> CardLedger:
        """The slice's own account of its card."""
        return xpu_pages.read_ledger(self.directory / "ledger.page").cards[0]


class Agent:
    """The node agent, and the node ledger by which it knows the slices."""

    def __init__(
        self, directory: Path, program: Path, nvml: Path, outside: Mapping[str, str]
    ) -> None:
        self.program = program
        self._etc, self._state = directory / "etc", directory / "state"
        self._slices: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        (self._state / "slices").mkdir(parents=True)
        (self._etc / "bench").mkdir(parents=True)
        self._write()
        self.log = directory / "agent.log"
        flags = {
            "slice-dir": self._etc,
            "state-dir": self._state,
            "nvml-library": nvml,
            # No container runtime here: nothing of the machine's own CDI is read or written.
            "cdi-base": directory / "no-base.yaml",
            "cdi-file": directory / "vgpu.yaml",
        }
        argv = [str(program), "agent", *(f"--{name}={value}" for name, value in flags.items())]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(argv, env={**os.environ, **outside}, stderr=log)

    def _write(self) -> None:
        whole = self._state / "ledger.json"
        scratch = whole.with_suffix(".new")
        scratch.write_text(json.dumps({"version": 1, "slices": self._slices}))
        scratch.rename(whole)

    def add(self, pages: Path, uuid: str, grant: Mapping[str, Any]) -> None:
        """Put the slice with these pages into the node ledger."""
        with self._lock:
            share = {
                "uuid": uuid,
                # None that a page here has: its terms are the measurement's, not the ledger's.
                "vid": 1 + len(self._slices),
                "cores_percent": grant.get("cores_percent", 0),
                "memory_mib": grant.get("memory_bytes", 0) >> 20,
                "mode": grant.get("mode", "hard"),
                "weight": grant.get("weight", 0),
            }
            owner = {"pod_uid": "bench", "container": pages.name}
            slice = {"key": pages.name, "owner": owner, "tokens": [pages.name], "shares": [share]}
            self._slices.append(slice)
            # Before the files, as the device plugin: the agent removes those of no slice.
            self._write()
            (self._etc / "bench" / pages.name).symlink_to(pages)
            (self._state / "slices" / pages.name).symlink_to(pages)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def state(self) -> Path:
        """Its state directory, where its sockets are too."""
        return self._state

    def check(self) -> None:
        """A run in which the agent died has measured something else."""
        if self._process.poll() is not None:
            raise RigError(
                f"the node agent ended with {self._process.returncode}:\n{self.log.read_text()}"
            )

    def end(self) -> None:
        """Let it end."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class Rig:
    """Cards, driver, programs. ``device`` is the report's word for them."""

    scratch: Path
    device: str
    driver: Path
    uuids: tuple[str, ...]
    programs: Path
    library: Path
    node: simnode.Node | None
    agent: Agent | None = None
    _made: int = 0

    @property
    def digest(self) -> str:
        """sha256 of the tested library, as shipped."""
        return hashlib.sha256(self.library.read_bytes()).hexdigest()

    def _outside(self) -> dict[str, str]:
        return dict(self.node.environment) if self.node else {}

    def _fresh(self, kind: str) -> Path:
        self._made += 1
        made = self.scratch / f"{kind}-{self._made}"
        made.mkdir()
        return made

    def bare(self) -> Place:
        """The driver and nothing else."""
        return Place(environment=self._outside())

    def behind(self, interposer: Path) -> Place:
        """The driver with *interposer* preloaded."""
        return Place(environment={**self._outside(), "LD_PRELOAD": str(interposer)})

    def slice(self, card: int = 0, **grant: Any) -> Slice:
        """A fresh slice of a card, as a container has it."""
        libraries, pages, lower = (self._fresh(kind) for kind in ("lib", "slice", "lower"))
        (lower / "xpu").mkdir()
        (libraries / "libcuda.so.1").symlink_to(self.library)
        (libraries / "libcuda-original.so").symlink_to(self.driver)
        xpu_pages.write_slice(pages, [CardConfig(self.uuids[card], **grant)])
        if self.agent is not None:
            self.agent.add(pages, self.uuids[card], grant)
        outside = self._outside()
        paths = [str(libraries), *filter(None, [outside.get("LD_LIBRARY_PATH")])]
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "slice"]
        place = Place(
            argv=(*enter, str(pages), str(lower)),
            environment={**outside, "LD_LIBRARY_PATH": ":".join(paths)},
        )
        return Slice(pages, place, self.uuids[card])

    def start(self, place: Place, verb: str, *words: object, card: int = 0) -> Tenant:
        """Start bench-load in *place* on a card."""
        argv = [*place.argv, str(self.programs / "bench-load"), verb, str(card), *map(str, words)]
        process = subprocess.Popen(
            argv,
            env={**os.environ, **place.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return Tenant(process, argv)

    def start_agent(self) -> None:
        """Run the node agent beside the cards."""
        program = cluster.build(Cache()) / "gpu-device-plugin"
        nvml = self.node.driver / "lib" / "libnvidia-ml.so.1" if self.node else "libnvidia-ml.so.1"
        self.agent = Agent(self._fresh("agent"), program, Path(nvml), self._outside())

    def _ledger(self) -> Any:
        assert self.node is not None
        return json.loads(self.node.run("simgpu", "ledger", "--json"))

    def readings(self, tenants: Sequence[Tenant]) -> list[Reading]:
        """Card time of each tenant, by the referee."""
        if self.node is None:
            counts = [tenant.ask("count") for tenant in tenants]
            return [Reading(count["now_ns"], count["kernel_ns"]) for count in counts]
        ledger = self._ledger()
        used: dict[int, int] = {}
        for entry in ledger["processes"]:
            used[entry["pid"]] = used.get(entry["pid"], 0) + entry["busy_ns"]
        return [Reading(ledger["monotonic_ns"], used.get(tenant.pid, 0)) for tenant in tenants]

    def memory(self, tenants: Sequence[Tenant]) -> list[int]:
        """Card memory that each tenant holds, its context included, by the referee."""
        if self.node is None:
            return [0] * len(tenants)
        entries = self._ledger()["processes"]
        return [
            sum(entry["memory_bytes"] for entry in entries if entry["pid"] == tenant.pid)
            for tenant in tenants
        ]


def _real(scratch: Path) -> Rig:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    card = re.search(r"GPU 0: (.+) \(UUID: (GPU-[0-9a-f-]+)\)", listed.stdout)
    cached = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False)
    driver = re.search(r"libcuda\.so\.1 .*x86-64.* => (\S+)", cached.stdout)
    if card is None or driver is None:
        raise RigError("DEVICE=real: no card or no libcuda.so.1 here; unset DEVICE to simulate one")
    return Rig(
        scratch=scratch,
        device=card.group(1),
        driver=Path(driver.group(1)).resolve(),
        uuids=(card.group(2),),
        programs=bench_recipe.build(Cache()),
        library=cuda.build(Cache()) / "lib" / "libcuda_direct.so",
        node=None,
    )


def _simulated(scratch: Path, profile: str, cards: int) -> Rig:
    node = simnode.up(scratch / "node", [profile] * cards)
    return Rig(
        scratch=scratch,
        device=f"simulated:{profile}",
        driver=(node.driver / "lib" / "libcuda.so.1").resolve(),
        uuids=node.uuids,
        programs=bench_recipe.build(Cache()),
        library=cuda.build(Cache()) / "lib" / "libcuda_direct.so",
        node=node,
    )


@contextlib.contextmanager
def up(cards: int = 1, profile: str = "a100-40g", *, agent: bool = False) -> Iterator[Rig]:
    """The rig that ``DEVICE`` names (``simulated``, the default, or ``real``).

    *agent*: whether the node agent runs beside it, unless ``AGENT`` says otherwise.
    """
    kind = os.environ.get("DEVICE", "simulated")
    if kind not in ("simulated", "real"):
        raise RigError(f"DEVICE={kind}: only simulated and real are known")
    wanted = os.environ.get("AGENT", "shipped" if agent else "none")
    if wanted not in ("shipped", "none"):
        raise RigError(f"AGENT={wanted}: only shipped and none are known")
    if os.geteuid() != 0:
        raise RigError("a tenant gets a mount namespace of its own, which needs root; use sudo")
    with tempfile.TemporaryDirectory(prefix="bench-cuda-") as name:
        scratch = Path(name)
        rig = _real(scratch) if kind == "real" else _simulated(scratch, profile, cards)
        try:
            if wanted == "shipped":
                rig.start_agent()
            yield rig
            if rig.agent is not None:
                rig.agent.check()
        finally:
            if rig.agent is not None:
                rig.agent.end()
            if rig.node is not None:
                simnode.down(rig.node.directory)


def described(rig: Rig) -> str:
    """The part of a method that all CUDA benchmarks share."""
    agent = "no node agent"
    if rig.agent is not None:
        digest = hashlib.sha256(rig.agent.program.read_bytes()).hexdigest()
        agent = f"beside the node agent as shipped (gpu-device-plugin agent, sha256 {digest})"
    referee = "the simulated card's own ledger" if rig.node else "the tenants' completed kernels"
    return (
        f"libcuda_direct.so as shipped (sha256 {rig.digest}) in the driver's place, pages at "
        f"/etc/xpu and /run/xpu of a mount namespace; {agent}; referee: {referee}"
    )


def main_of(measure: Any) -> int:
    """Run a benchmark's ``measure``; print what is missing instead of a traceback."""
    try:
        return int(measure())
    except (RigError, simnode.SimnodeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
