# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-webhook``: what the admission webhook adds to the creation of a pod.

The shipped program in a process of its own, with an API server that knows its Secret and its
webhook configurations; asked over one kept HTTPS connection (HTTP/2), as the API server does. A
bare HTTPS echo of the same bodies takes turns with it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xpubuild.cache import Cache, digest_file
from xpubuild.recipes import webhook
from xpubuild.toolchain import go_build

from bench.benchlib import Figure, Report, publish
from bench.figures import percentile

ROUNDS = int(os.environ.get("ROUNDS", "5"))
REQUESTS = int(os.environ.get("REQUESTS", "4000"))
WORKERS = int(os.environ.get("WORKERS", "4"))
TARGET_MS = 5.0


def milliseconds(turns: Sequence[Sequence[int]], percent: float) -> float:
    """Median over the turns of a percentile."""
    return statistics.median(percentile(turn, percent) for turn in turns) / 1e6


def report(found: dict[str, list[list[int]]], program: Path) -> Report:
    """The figures of what the load program printed."""
    asked, floor = found["webhook"], found["echo"]
    worst = max(percentile(turn, 99) for turn in asked) / 1e6
    return Report(
        name="webhook",
        method=f"{len(asked)} turns of {len(asked[0])} AdmissionReviews of mixed pods, {WORKERS} at"
        f" a time over one HTTP/2 connection; xpu-webhook {digest_file(program)[:12]} and the echo"
        " are processes of their own on this machine; median of the turns' percentiles",
        device="none",
        figures={
            "p99": Figure(milliseconds(asked, 99), "ms", TARGET_MS),
            "p99 of the worst turn": Figure(worst, "ms"),
            "p50": Figure(milliseconds(asked, 50), "ms"),
            "p99 above the echo's": Figure(milliseconds(asked, 99) - milliseconds(floor, 99), "ms"),
        },
        baselines={
            "bare HTTPS echo": {
                "p99": Figure(milliseconds(floor, 99), "ms"),
                "p50": Figure(milliseconds(floor, 50), "ms"),
            }
        },
    )


def main() -> int:
    program = webhook.build(Cache()) / "xpu-webhook"
    with tempfile.TemporaryDirectory(prefix="bench-webhook-") as scratch:
        load = Path(scratch) / "load"
        go_build(webhook.MODULE, {load: "./webhook/testdata/load"})
        done = subprocess.run(
            [
                load,
                f"-program={program}",
                f"-rounds={ROUNDS}",
                f"-requests={REQUESTS}",
                f"-workers={WORKERS}",
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        return 1
    return publish(report(json.loads(done.stdout), program))


if __name__ == "__main__":
    sys.exit(main())
