# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-exporter``: how long a scrape of 64 slices takes, and what it costs.

The shipped ``xpu-exporter`` asks the shipped ``gpu-device-plugin agent`` beside four simulated
cards of 16 slices each. No slice has a process, which is the dearest case: NVML is open only while
one has, so each scrape opens it anew. Every scrape is a connection of its own.

The cost is the processor time of all threads of both programs, less what the agent needs in the
same time without scrapes, over the 15 s of the usual scrape interval.

Environment: ``SCRAPES`` (default 20).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from xpubuild.cache import Cache
from xpubuild.recipes import tools

from bench import benchlib, rig
from bench.benchlib import Figure, Report
from bench.syshaxlib import free_port

PROFILE = "a100-40g"
CARDS, PER_CARD = 4, 16
GIB = 1 << 30
INTERVAL_S = 15.0
MAX_SCRAPE_MS = 20.0
MAX_CORE_PERCENT = 1.0
# gpu-device-plugin opens NVML once a second at most; what comes sooner waits for its turn.
PAUSE_S = 1.1
PATIENCE_S = 60.0


def processor_ns(pid: int) -> int:
    """Processor time of all threads that a process has now."""
    used = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            used += int((task / "schedstat").read_text().split()[0])
    return used


def scrape(url: str) -> tuple[float, str]:
    """(milliseconds, text) of one scrape."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return (time.perf_counter() - began) * 1e3, text


def slices_in(text: str) -> int:
    """How many slices a scrape shows with what their pages say."""
    return sum(line.startswith("xpu_vgpu_debt_seconds{") for line in text.splitlines())


@contextlib.contextmanager
def exporting(socket: Path) -> Iterator[tuple[int, str]]:
    """(pid, URL) of a running exporter that shows no answer twice."""
    port = free_port()
    program = tools.build(Cache(), tools.EXPORTER)
    flags = (f"--port={port}", "--listen-address=127.0.0.1", f"--socket={socket}", "--updateTime=0")
    process = subprocess.Popen([program, *flags, "--node-name=bench"], stderr=subprocess.DEVNULL)
    try:
        yield process.pid, f"http://127.0.0.1:{port}/metrics"
    finally:
        process.terminate()
        process.wait()


def await_slices(url: str, wanted: int) -> int:
    """Wait until all are shown; the scrape's size in bytes."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(urllib.error.URLError):
            _, text = scrape(url)
            if slices_in(text) == wanted and "xpu_gpu_temperature{" in text:
                return len(text)
        if time.monotonic() > deadline:
            raise rig.RigError(f"the exporter shows no {wanted} slices after {PATIENCE_S:g} s")
        time.sleep(PAUSE_S)


def measure() -> int:
    """Measure, print and write the report; 1 when a figure is not met."""
    count = int(os.environ.get("SCRAPES", "20"))
    with rig.up(CARDS, PROFILE, agent=True) as on:
        for number in range(CARDS * PER_CARD):
            on.slice(number % CARDS, memory_bytes=2 * GIB, cores_percent=6)
        assert on.agent is not None
        agent = on.agent.pid
        with exporting(on.agent.state / "exporter/pids.sock") as (exporter, url):
            size = await_slices(url, CARDS * PER_CARD)
            before = processor_ns(agent)
            time.sleep(count * PAUSE_S)
            idle = processor_ns(agent) - before
            agent_before, exporter_before = processor_ns(agent), processor_ns(exporter)
            waited = []
            for _ in range(count):
                time.sleep(PAUSE_S)
                milliseconds, text = scrape(url)
                if slices_in(text) != CARDS * PER_CARD:
                    raise rig.RigError("a scrape left slices out")
                waited.append(milliseconds)
            agent_ms = max(0, processor_ns(agent) - agent_before - idle) / 1e6 / count
            exporter_ms = (processor_ns(exporter) - exporter_before) / 1e6 / count
        on.agent.check()
        device = on.device
    core = (agent_ms + exporter_ms) / 1e3 / INTERVAL_S * 100
    found = {
        "scrape, median": Figure(round(statistics.median(waited), 2), "ms", MAX_SCRAPE_MS),
        "scrape, slowest": Figure(round(max(waited), 2), "ms"),
        f"of a core, scraped each {INTERVAL_S:g} s": Figure(round(core, 4), "%", MAX_CORE_PERCENT),
        "processor time a scrape, xpu-exporter": Figure(round(exporter_ms, 3), "ms"),
        "processor time a scrape, gpu-device-plugin": Figure(round(agent_ms, 3), "ms"),
        "size of a scrape": Figure(round(size / 1024, 1), "KiB"),
    }
    method = (
        f"{count} scrapes, {PAUSE_S:g} s apart, a connection each, of {CARDS} cards with "
        f"{PER_CARD} slices each that have no process, so that NVML is opened for every scrape; "
        "xpu-exporter and gpu-device-plugin agent as shipped; processor time of all threads, the "
        "agent's less what it needs as long without scrapes"
    )
    return benchlib.publish(Report("exporter", method, device, found))


if __name__ == "__main__":
    sys.exit(rig.main_of(measure))
