# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-site``: what a second run of site.yml costs when there is nothing to do.

For each fleet size: run ``flexai.xpu.site`` on hosts where everything is in force, count the module
executions at the hosts' own interpreters, and take the CPU time of Ansible and everything that it
started. Then change one observed fact on a random tenth of the hosts and run again in check mode:
exactly these hosts and components must be named, so the figure can't be had by a stamp. A plain
role, one task per step, stands beside it at ten hosts.

Ten systemd hosts reached by SSH stand in the same table: their tools are real, and so is the wire.
``FLEET=testbed`` measures the hosts of a running testbed (``make demo``) instead: report
``site-testbed``.

Environment: ``HOSTS`` (default "10 100 1000"), ``FLEET`` (``local``, ``ssh``, both, the default, or
``testbed``), ``REPEAT`` (runs per size, median taken; default 3, 1 above 100 hosts), ``SEED``,
``FLEXAI_TESTBED``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.platform import Platform, run
from testbed.artefacts import publish_all
from testbed.hosts import load
from testbed.suite import fresh_hosts
from unit import hostroot

from bench import benchlib, fleet, realfleet
from bench.benchlib import Figure, Report

PLAYBOOK = Path(sysconfig.get_path("scripts")) / "ansible-playbook"
FLEET = benchlib.REPOSITORY / "tests/testbed/topologies/fleet.yaml"
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


def account(action: Callable[[], str]) -> tuple[float, float, str]:
    """(wall seconds, CPU seconds of all children that ended meanwhile, what *action* returned)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    output = action()
    wall_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s, output


def run_playbook(
    playbook: str, inventory: Path, hosts: Sequence[fleet.FleetHost], *more: str
) -> Cost:
    """Run a playbook and account for it; raise when it fails."""
    for host in hosts:
        host.counter.unlink(missing_ok=True)
    env = {"ANSIBLE_CONFIG": str(benchlib.REPOSITORY / "ansible.cfg")}
    command = [str(PLAYBOOK), playbook, "--inventory", str(inventory), *more]
    wall_s, cpu_s, output = account(lambda: run(command, env=env).output)
    return Cost(wall_s, cpu_s, max(host.executions() for host in hosts), output)


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


def run_on_testbed(platform: Platform, hosts: Sequence[realfleet.RealHost]) -> Cost:
    """One run of site.yml's node part; CPU is the controller's and the hosts' together."""
    variables = {"ansible_python_interpreter": realfleet.INTERPRETER, "flexai_kubeconfig": ""}
    arguments = ("--limit", "flexai_nodes", "--extra-vars", json.dumps(variables))
    for host in hosts:
        host.clear()
    wall_s, cpu_s, output = account(lambda: platform.playbook("site", *arguments).output)
    books = [host.book() for host in hosts]
    cpu_s += sum(book.cpu_s for book in books)
    return Cost(wall_s, cpu_s, max(book.executions for book in books), output)


def measure_hosts(platform: Platform, names: Sequence[str], repeat: int) -> dict[str, Figure]:
    """The figures of real hosts, the first run apart."""
    hosts = [realfleet.RealHost(platform, name) for name in names]
    platform.install_collection()
    for host in hosts:
        host.prepare()
    try:
        first = run_on_testbed(platform, hosts)  # does what was to do, if anything
        runs = [run_on_testbed(platform, hosts) for _ in range(repeat)]
    finally:
        for host in hosts:
            host.restore()
    size = f"{len(hosts)} hosts by {platform.connection}"
    print(f"  {size}: {[f'{run.wall_s:.1f} s' for run in (first, *runs)]}", flush=True)
    cpu_s = statistics.median(cost.cpu_s / len(hosts) for cost in runs)
    wall_s = statistics.median(cost.wall_s for cost in runs)
    return {
        f"executions per host, {size}": Figure(
            max(cost.executions for cost in runs), "modules", MAX_EXECUTIONS
        ),
        # Ansible's own start, about a second, falls on few hosts here, and the hosts are on this
        # machine too: reported, not judged.
        f"CPU per host, {size}": Figure(round(cpu_s, 3), "s"),
        f"wall, {size}": Figure(round(wall_s, 1), "s"),
        f"hosts changed, {size}": Figure(
            max(changed_hosts(cost.output) for cost in runs), "hosts", 0
        ),
    }


HOSTS_METHOD = (
    "executions and their CPU taken at each host's interpreter, plus CPU of ansible-playbook and "
    "its children, divided by hosts; median of runs"
)


def repetitions(count: int) -> int:
    """How often a fleet of *count* hosts is measured."""
    return int(os.environ.get("REPEAT", 3 if count <= 100 else 1))


def report_testbed() -> Report:
    """``FLEET=testbed``: the hosts with cards of a testbed that is up."""
    platform = Platform(os.environ.get("FLEXAI_TESTBED", "demo"))
    with_cards = [host for host in load(platform.name).hosts if host.cards]
    names = [host.name for host in with_cards]
    profiles = {card.profile for host in with_cards for card in host.cards}
    return Report(
        name="site-testbed",
        method="second run of flexai.xpu.site (node part) on the testbed's hosts with cards; "
        + HOSTS_METHOD,
        device=f"simulated:{'+'.join(sorted(profiles))}",
        figures=measure_hosts(platform, names, repetitions(len(names))),
    )


def measure_ssh() -> dict[str, Figure]:
    """Ten hosts of a testbed of their own, made ready by the first run."""
    publish_all(benchlib.REPOSITORY / "build" / "artefacts")
    with fresh_hosts(FLEET, "bench-fleet") as testbed:
        for host in testbed.hosts:
            # No role of a testbed means containerd alone.
            host.exec(["systemctl", "enable", "--now", "containerd.service"])
        names = [host.name for host in testbed.hosts]
        return measure_hosts(Platform(testbed.name, "ssh"), names, repetitions(len(names)))


def measure_local(seed: int) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Host roots on this machine, and the plain role beside them."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="bench-site-") as name:
        scratch = Path(name)
        for count in [int(word) for word in os.environ.get("HOSTS", "10 100 1000").split()]:
            figures |= measure(count, repetitions(count), seed, scratch)
        return figures, measure_plain(scratch)


def report(kinds: Sequence[str]) -> Report:
    """``FLEET="local ssh"``, or one of them."""
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    figures: dict[str, Figure] = {}
    baselines: dict[str, dict[str, Figure]] = {}
    methods = []
    if "local" in kinds:
        figures, plain = measure_local(seed)
        baselines = {"plain role, a task per step": plain}
        methods.append(
            "over local connections hosts are root directories whose tools are small scripts; "
            "executions counted at each host's interpreter; CPU of ansible-playbook and all its "
            "children, divided by hosts; median of runs; then drift on "
            f"{DRIFT_SHARE:.0%} of the hosts (seed {seed})"
        )
    if "ssh" in kinds:
        figures |= measure_ssh()
        methods.append(f"by SSH they are systemd hosts of a testbed; {HOSTS_METHOD}")
    return Report(
        name="site",
        method="second run of flexai.xpu.site (node part); " + "; ".join(methods),
        device="simulated:host-roots" if "local" in kinds else "simulated:t4",
        figures=figures,
        baselines=baselines,
    )


KINDS = ("local", "ssh")


def main() -> int:
    """Measure, print and write the report; 1 when a figure is not met."""
    kinds = os.environ.get("FLEET", " ".join(KINDS)).split()
    if kinds == ["testbed"]:
        return benchlib.publish(report_testbed())
    if not kinds or set(kinds) - set(KINDS):
        print(
            f"FLEET={' '.join(kinds)}: unknown; take {' and '.join(KINDS)} (or one), or testbed",
            file=sys.stderr,
        )
        return 2
    return benchlib.publish(report(kinds))


if __name__ == "__main__":
    sys.exit(main())
