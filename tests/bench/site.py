# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-site``: what a second run of site.yml costs when there is nothing to do.

For each fleet size: run ``flexai.xpu.site`` on hosts where everything is in force, count the module
executions at the hosts' own interpreters, and take the CPU time of Ansible and everything that it
started. Then change one observed fact on a random tenth of the hosts and run again in check mode:
exactly these hosts and components must be named, so the figure can't be had by a stamp. A plain
role, one task per step, stands beside it at ten hosts.

Environment: ``HOSTS`` (default "10 100 1000"), ``FLEET`` (``local``), ``REPEAT`` (runs per size,
median taken; default 3, 1 above 100 hosts), ``SEED``.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unit import hostroot

from bench import benchlib, fleet
from bench.benchlib import Figure, Report

PLAYBOOK = Path(sysconfig.get_path("scripts")) / "ansible-playbook"
MAX_EXECUTIONS = 2
MAX_CPU_S = 0.6
DRIFT_SHARE = 0.1
PLAIN_HOSTS = 10
_PLANNED = re.compile(r"^(host\d{4}) +(\w+) +(?:install|change|remove|blocked)\b", re.MULTILINE)


@dataclass(frozen=True)
class Cost:
    """One run of a playbook: seconds, and module executions per host."""

    wall_s: float
    cpu_s: float
    executions: int
    output: str


def run_playbook(
    playbook: str, inventory: Path, hosts: Sequence[fleet.FleetHost], *more: str
) -> Cost:
    """Run a playbook and account for it; raise when it fails."""
    for host in hosts:
        host.counter.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        [str(PLAYBOOK), playbook, "--inventory", str(inventory), *more],
        cwd=benchlib.REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(benchlib.REPOSITORY / "ansible.cfg")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wall_s = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{playbook} on {len(hosts)} hosts failed:\n{done.stdout[-4000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall_s, cpu_s, max(host.executions() for host in hosts), done.stdout)


def changed_hosts(output: str) -> int:
    """How many hosts Ansible reports a change for."""
    return len(re.findall(r"changed=[1-9]", output.partition("PLAY RECAP")[2]))


def named_components(output: str, expected: Mapping[str, str]) -> tuple[int, int]:
    """(drifted hosts whose component the plan names, hosts named without having drifted)."""
    found = set(_PLANNED.findall(output))
    right = sum((host, component) in found for host, component in expected.items())
    wrong = len({host for host, _component in found} - set(expected))
    return right, wrong


def measure(count: int, repeat: int, seed: int, scratch: Path) -> dict[str, Figure]:
    """The figures of one fleet size."""
    directory = scratch / str(count)
    directory.mkdir()
    manifest = hostroot.manifest(directory / "artefacts")
    hosts = fleet.make(directory, count)
    inventory = fleet.inventory(hosts, manifest, directory / "inventory.yml")
    runs = [run_playbook("flexai.xpu.site", inventory, hosts) for _ in range(repeat)]
    print(f"  {count} hosts: {[f'{run.wall_s:.1f} s' for run in runs]}", flush=True)
    changed = max(changed_hosts(run.output) for run in runs)
    expected = fleet.drift(hosts, DRIFT_SHARE, seed)
    drifted = run_playbook("flexai.xpu.preflight", inventory, hosts, "--check")
    right, wrong = named_components(drifted.output, expected)
    cpu_s = statistics.median(run.cpu_s / count for run in runs)
    return {
        f"executions per host, {count} hosts": Figure(
            max(run.executions for run in runs), "modules", MAX_EXECUTIONS
        ),
        f"CPU per host, {count} hosts": Figure(round(cpu_s, 3), "s", MAX_CPU_S),
        f"wall, {count} hosts": Figure(
            round(statistics.median(run.wall_s for run in runs), 1), "s"
        ),
        f"hosts changed, {count} hosts": Figure(changed, "hosts", 0),
        f"drifted hosts found, {count} hosts": Figure(
            100 * right / len(expected), "%", 100, "higher"
        ),
        f"hosts named wrongly, {count} hosts": Figure(wrong, "hosts", 0),
    }


def measure_plain(scratch: Path) -> dict[str, Figure]:
    """The same questions asked by a plain role, one task per step."""
    directory = scratch / "plain"
    directory.mkdir()
    manifest = hostroot.manifest(directory / "artefacts")
    hosts = fleet.make(directory, PLAIN_HOSTS)
    inventory = fleet.inventory(hosts, manifest, directory / "inventory.yml")
    cost = run_playbook("tests/bench/plain.yml", inventory, hosts)
    return {
        f"executions per host, {PLAIN_HOSTS} hosts": Figure(cost.executions, "modules"),
        f"CPU per host, {PLAIN_HOSTS} hosts": Figure(round(cost.cpu_s / PLAIN_HOSTS, 3), "s"),
        f"wall, {PLAIN_HOSTS} hosts": Figure(round(cost.wall_s, 1), "s"),
    }


def main() -> int:
    """Measure every size, print and write the report; 1 when a figure is not met."""
    kind = os.environ.get("FLEET", "local")
    if kind != "local":
        print(f"FLEET={kind}: only local is known; unset FLEET or set FLEET=local", file=sys.stderr)
        return 2
    sizes = [int(word) for word in os.environ.get("HOSTS", "10 100 1000").split()]
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="bench-site-") as name:
        scratch = Path(name)
        for count in sizes:
            repeat = int(os.environ.get("REPEAT", 3 if count <= 100 else 1))
            figures |= measure(count, repeat, seed, scratch)
        plain = measure_plain(scratch)
    return benchlib.publish(
        Report(
            name="site",
            method=(
                "second run of flexai.xpu.site (node part) over local connections, hosts are root "
                "directories whose tools are small scripts; executions counted at each host's "
                "interpreter; CPU of ansible-playbook and all its children, divided by hosts; "
                f"median of runs; then drift on {DRIFT_SHARE:.0%} of the hosts (seed {seed})"
            ),
            device="simulated:host-roots",
            figures=figures,
            baselines={"plain role, a task per step": plain},
        )
    )


if __name__ == "__main__":
    sys.exit(main())
