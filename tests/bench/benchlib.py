# SPDX-License-Identifier: GPL-3.0-or-later
"""The report format of every benchmark (DESIGN section 11): figures with targets, JSON and a table.

A figure has a value, a unit, a target (or none: reported only) and the direction that is better;
whether it is met follows from these and is never said by the benchmark itself.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Figure:
    """One measured number. ``target`` None means that it is reported, not judged."""

    value: float
    unit: str
    target: float | None = None
    better: Better = "lower"

    @property
    def met(self) -> bool | None:
        """True or False against the target, None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "better": self.better,
            "met": self.met,
        }


@dataclass(frozen=True)
class Report:
    """What one benchmark found."""

    name: str
    method: str
    device: str
    figures: Mapping[str, Figure]
    baselines: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether every figure that has a target meets it."""
        return all(figure.met is not False for figure in self.figures.values())


def machine() -> dict[str, object]:
    """The machine's own words: processor, cores, memory, kernel."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [
        line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
    }


def commit() -> str:
    """The commit that was measured, marked when the working tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        ).stdout.strip()

    head = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{head}-modified" if git("status", "--porcelain", "--untracked-files=no") else head


def document(report: Report, now: datetime | None = None) -> dict[str, object]:
    """The whole report as JSON data."""
    return {
        "name": report.name,
        "date": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "device": report.device,
        "method": report.method,
        "figures": {name: figure.document() for name, figure in report.figures.items()},
        "baselines": {
            name: {key: figure.document() for key, figure in figures.items()}
            for name, figures in report.baselines.items()
        },
        "met": report.met,
    }


def table(data: Mapping[str, object]) -> str:
    """The report for people; *data* is what ``document`` returned or a report file holds."""
    host = data["machine"]
    figures = data["figures"]
    baselines = data["baselines"]
    assert isinstance(host, Mapping) and isinstance(figures, Mapping)
    assert isinstance(baselines, Mapping)
    lines = [
        f"{data['name']} ({data['device']}), {data['date']}, commit {data['commit']}",
        f"  machine: {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, "
        f"kernel {host['kernel']}",
        f"  method:  {data['method']}",
    ]
    rows = [("", name, figure) for name, figure in figures.items()]
    for baseline, measured in baselines.items():
        rows += [(baseline, name, figure) for name, figure in measured.items()]
    width = max((len(f"{group} {name}".strip()) for group, name, _ in rows), default=0)
    for group, name, figure in rows:
        lines.append(f"  {f'{group} {name}'.strip():<{width}}  {_judged(figure)}")
    lines.append(f"  {'met' if data['met'] else 'NOT met'}")
    return "\n".join(lines)


def _judged(figure: Mapping[str, object]) -> str:
    text = f"{figure['value']:>12.4g} {figure['unit']}"
    if figure["target"] is None:
        return text
    sign = "≤" if figure["better"] == "lower" else "≥"
    return f"{text}  (target {sign} {figure['target']:g}: {'met' if figure['met'] else 'NOT met'})"


def publish(report: Report, directory: Path = REPOSITORY / "build" / "bench") -> int:
    """Print the table, write ``<directory>/<name>.json``, return the exit code (1 when not met)."""
    data = document(report)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{report.name}.json"
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(data))
    print(f"  report:  {path}")
    return 0 if report.met else 1
