# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-allocate``: what the kubelet waits for when a hundred pods ask for slices at once.

A testbed of its own (real kubelets, two nodes with twelve simulated cards); the crowd is that of
``tests/e2e/mixed.py``. The device plugin times each call itself (``--log-level debug``, lines
``call``), refused ones too. While the crowd starts, a bare write and fsync of a file on the same
file system is timed again and again: durable writes can't be faster than that.

``PODS=100`` at once, ``ROUNDS=1`` crowds one after another, ``FLOOR=50`` milliseconds between two
bare writes (0: none). ``TESTBED=allocate`` names the testbed; one that is up stays up.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from e2e import referee
from e2e.load import Crowd, StuckError, cards_of, hosts_with_cards, ledgers
from e2e.mixed import crowd
from e2e.platform import ROOT, STATE, Platform
from e2e.site import standing

from bench import benchlib
from bench.benchlib import Figure, Report
from bench.figures import percentile

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "load.yaml"
SCHEDULERS = ("default-scheduler", "volcano")
ALLOCATE_MS, PRESTART_MS = 1.0, 25.0
FLOOR_BYTES = 16 << 10
CALL = re.compile(r"msg=call method=(\w+) resource=(\S+) ids=(\d+) ns=(\d+) code=(\w+)")
VALUES = {"gpupool_values": {"logLevel": "debug"}}


@dataclass(frozen=True)
class Call:
    """One call of the kubelet, as the plugin timed it."""

    method: str
    resource: str
    ids: int
    ns: int
    code: str

    @property
    def ms(self) -> float:
        return self.ns / 1e6


@dataclass
class Found:
    """What all rounds found."""

    calls: list[Call] = field(default_factory=list)
    floor_ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: int = 0
    granted: int = 0
    refused: int = 0
    given_up: int = 0
    seconds: float = 0.0


def parse_calls(log: str) -> list[Call]:
    """The lines ``call`` of a plugin's log."""
    return [
        Call(method, resource, int(ids), int(ns), code)
        for method, resource, ids, ns, code in CALL.findall(log)
    ]


def spread(values: Sequence[float], name: str, target_ms: float | None) -> dict[str, Figure]:
    """Median, 99th percentile (judged) and the largest, in milliseconds."""
    return {
        f"{name} p50": Figure(round(percentile(values, 50), 3), "ms"),
        f"{name} p99": Figure(round(percentile(values, 99), 3), "ms", target_ms),
        f"{name} most": Figure(round(max(values), 3), "ms"),
    }


def figures(found: Found) -> dict[str, Figure]:
    """What is judged and what is told; no call at all is an error, not a good figure."""
    allocate = [call.ms for call in found.calls if call.method == "Allocate"]
    prestart = [call.ms for call in found.calls if call.method == "PreStartContainer"]
    if not allocate or not prestart:
        raise ValueError("the plugins' logs show no call; do they run with --log-level debug?")
    failed = sum(1 for call in found.calls if call.code != "OK")
    return {
        **spread(allocate, "Allocate", ALLOCATE_MS),
        **spread(prestart, "PreStart", PRESTART_MS),
        "wrong cards": Figure(len(found.wrong), "", 0),
        "stuck pods": Figure(found.stuck, "", 0),
        "containers judged from inside": Figure(found.granted, ""),
        "pods refused with the reason": Figure(found.refused, ""),
        "whole cards out of reach": Figure(found.given_up, ""),
        "calls": Figure(len(found.calls), ""),
        "calls refused": Figure(failed, ""),
        "until all had settled, per round": Figure(round(found.seconds, 1), "s"),
    }


@contextmanager
def bare_writes(directory: Path, interval_s: float, into: list[float]) -> Iterator[None]:
    """Time a bare write and fsync of a ledger's size again and again, beside what runs."""
    if not interval_s:
        yield
        return
    ended = threading.Event()
    file = directory / ".bench-floor"

    def write() -> None:
        content = os.urandom(FLOOR_BYTES)
        while not ended.wait(interval_s):
            began = time.perf_counter_ns()
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            into.append((time.perf_counter_ns() - began) / 1e6)

    writer = threading.Thread(target=write, name="floor")
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        file.unlink(missing_ok=True)


def plugin_logs(platform: Platform, since: datetime) -> str:
    """What all plugins said since an instant."""
    return platform.kubectl(
        "-n", "xpu", "logs", "-l", "app.kubernetes.io/name=gpu-device-plugin", "--prefix=false",
        "--tail=-1", f"--since-time={since.isoformat(timespec='seconds')}",
    ).output  # fmt: skip


def one_round(platform: Platform, number: int, pods: int, floor_s: float, found: Found) -> None:
    """One crowd from its start to its end."""
    hosts = hosts_with_cards(platform)
    cards = cards_of(platform, hosts)
    load = Crowd(platform, f"bench-allocate-{number}")
    load.open()
    began, started = datetime.now(UTC), time.monotonic()
    state = STATE / platform.name / "hosts" / hosts[0] / "var-lib" / "xpu"
    try:
        with bare_writes(state, floor_s, found.floor_ms):
            load.submit(
                crowd(
                    pods,
                    hosts,
                    SCHEDULERS,
                    seen=load.seen_by_webhook(),
                    seed=number,
                    prefix=f"r{number}x",
                )
            )
            try:
                load.settle()
            except StuckError as error:
                print(error, file=sys.stderr)
                found.stuck += len(str(error).splitlines()) - 1
        found.seconds = max(found.seconds, time.monotonic() - started)
        found.calls += parse_calls(plugin_logs(platform, began))
        seen, ledger = load.outcome.seen, ledgers(platform, hosts)
        found.wrong += referee.wrong_cards(seen, cards) + referee.given_twice(seen, cards)
        found.wrong += referee.overbooked(ledger, cards)
        found.granted += len(seen)
        found.refused += len(load.outcome.refused)
        found.given_up += len(load.outcome.given_up)
    finally:
        load.close()


def main() -> int:
    """Measure, print and write the report; 1 when a figure is not met."""
    rounds = int(os.environ.get("ROUNDS", "1"))
    pods = int(os.environ.get("PODS", "100"))
    floor_ms = float(os.environ.get("FLOOR", "50"))
    name = os.environ.get("FLEXAI_TESTBED", "demo")
    found = Found()
    with standing("allocate" if name == "demo" else name, TOPOLOGY, VALUES) as platform:
        for number in range(rounds):
            one_round(platform, number, pods, floor_ms / 1000, found)
    for finding in found.wrong:
        print(finding, file=sys.stderr)
    floor = spread(found.floor_ms, "write and fsync", None) if found.floor_ms else {}
    return benchlib.publish(
        Report(
            name="allocate",
            method=f"{rounds} × {pods} mixed pods at once on two kubelets of topology "
            f"{TOPOLOGY.name}, {' and '.join(SCHEDULERS)} in turn; each call timed by the plugin, "
            "refused ones too; pods judged from inside",
            device="simulated a100-40g",
            figures=figures(found),
            baselines={f"bare, {FLOOR_BYTES >> 10} KiB,": floor} if floor else {},
        )
    )


if __name__ == "__main__":
    sys.exit(main())
