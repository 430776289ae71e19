# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a running testbed as a fleet: real systemd hosts with the real tools.

Their modules are counted and timed on the host: Ansible is given an interpreter that appends, at
the end of each execution, the CPU time of the Python it started.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from e2e.platform import Platform, run

INTERPRETER = "/run/flexai-bench/python3"
BOOK = "/run/flexai-bench/times"
SCRIPT = f"""#!/bin/sh
# The shell's `times`: its own CPU, then that of the programs it started.
/usr/bin/python3 "$@"
status=$?
times >> {BOOK}
exit $status
"""
_TIMES = re.compile(r"(\d+)m([\d.]+)s")


@dataclass(frozen=True)
class Book:
    """What the executions on one host came to."""

    executions: int
    cpu_s: float


def read(text: str) -> Book:
    """``times`` prints two lines per execution, each with user and system time."""
    lines = text.splitlines()
    seconds = [60 * int(m) + float(s) for line in lines for m, s in _TIMES.findall(line)]
    return Book(len(lines) // 2, sum(seconds))


@dataclass(frozen=True)
class RealHost:
    """One host of the testbed."""

    platform: Platform
    name: str

    def _shell(self, script: str, stdin: str | None = None) -> str:
        container = f"{self.platform.name}-{self.name}"
        return run(["podman", "exec", "-i", container, "sh", "-c", script], stdin=stdin).output

    def prepare(self) -> None:
        """Put the counting interpreter in place (under /run: gone with the next boot)."""
        directory = INTERPRETER.rpartition("/")[0]
        self._shell(
            f"mkdir -p {directory} && cat > {INTERPRETER} && chmod 755 {INTERPRETER}", SCRIPT
        )

    def clear(self) -> None:
        """Forget earlier executions."""
        self._shell(f"rm -f {BOOK}")

    def book(self) -> Book:
        """The executions since the last clear."""
        return read(self._shell(f"cat {BOOK} 2>/dev/null || true"))

    def restore(self) -> None:
        """Leave nothing behind."""
        self._shell(f"rm -rf {INTERPRETER.rpartition('/')[0]}")
