# SPDX-License-Identifier: GPL-3.0-or-later
"""``up``: from a topology to running hosts. Every step looks first, then does what is missing."""

from __future__ import annotations

import ipaddress
import json
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from xpubuild.cache import Cache

from . import machine, plan
from .errors import TestbedError
from .hosts import STATE_ROOT, Host, Testbed, load
from .podman import (
    IMAGES,
    LABEL,
    LABEL_DEFINITION,
    containers,
    engine,
    has_monitor,
    image_exists,
    import_image,
    networks,
    networks_of,
    note_death,
    podman,
    start,
)
from .recipes import hosts as images
from .topology import Topology

Say = Callable[[str], None]
# The lock of all testbeds; no testbed can be called so.
CHOICE_OF_SUBNET = "(subnets)"
# systemd says one of these once it has nothing left to start.
SETTLED = ("running", "degraded")
# What podman calls a container that, as far as it knows, has a first process.
ALIVE = ("running", "stopping", "paused")
BOOT_SECONDS = 120
CRASHES = 3


def _routes() -> list[tuple[str, str]]:
    """IPv4 networks the machine already reaches, with the interface that does."""
    text = machine.run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout
    found = []
    for route in json.loads(text or b"[]"):
        destination = route.get("dst", "default")
        if destination != "default" and route.get("type", "unicast") == "unicast":
            found.append((destination, f"interface {route.get('dev', '?')}"))
    return found


def _network_subnets(known: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (subnet["subnet"], f"podman network {network['name']}")
        for network in known
        for subnet in network.get("subnets") or []
        if ipaddress.ip_network(subnet["subnet"]).version == 4
    ]


def _new_testbed(topology: Topology, name: str, subnet: str | None) -> Testbed:
    known = networks()
    leftovers = [str(entry["Names"][0]) for entry in containers(name)]
    leftovers += [f"network {network['name']}" for network in networks_of(name)]
    if leftovers:
        raise TestbedError(
            f"parts of an earlier testbed {name!r} are still there: {', '.join(leftovers)}",
            f"python -m testbed down --name {name}",
        )
    wanted = subnet or topology.subnet
    chosen = plan.choose_subnet(wanted, [*_network_subnets(known), *_routes()])
    mark = secrets.token_hex(3)
    testbed = plan.make_testbed(topology, name, chosen, STATE_ROOT / name, mark)
    _check_container_names(testbed)
    return testbed


def _check_container_names(testbed: Testbed) -> None:
    taken = {
        name
        for entry in json.loads(podman("ps", "--all", "--format", "json") or "[]")
        for name in entry["Names"]
    }
    for host in testbed.hosts:
        if host.container in taken:
            raise TestbedError(
                f"a container called {host.container!r} exists already and is no testbed's",
                f"remove it (podman rm -f {host.container}), or choose another --name",
            )


def settle(topology: Topology, name: str, subnet: str | None) -> Testbed:
    """The testbed to bring up: the one in the state file when it is of this topology, else new."""
    if not (STATE_ROOT / name / "state.json").exists():
        testbed = _new_testbed(topology, name, subnet)
        testbed.save()
        return testbed
    testbed = load(name)
    if testbed.topology != topology or (subnet and subnet != testbed.subnet):
        raise TestbedError(
            f"testbed {name!r} exists with another topology or subnet ({testbed.subnet})",
            f"python -m testbed down --name {name}, or choose another --name",
        )
    return testbed


def _image(cache: Cache, system: str, say: Say) -> str:
    archive = images.build(cache, system)
    # The cache key of the archive is its directory's name.
    reference = f"{IMAGES}{system}:{archive.parent.name[:12]}"
    if not image_exists(reference):
        say(f"importing the {system} image …")
        import_image(archive, reference, [f'CMD ["{plan.INIT}"]', "STOPSIGNAL SIGRTMIN+3"])
    return reference


def _ensure_network(testbed: Testbed) -> None:
    if any(network["name"] == testbed.network for network in networks()):
        return
    podman(
        "network",
        "create",
        # Hosts know each other from /etc/hosts; a name server would be one more process.
        "--disable-dns",
        f"--label={LABEL}={testbed.name}",
        f"--subnet={testbed.subnet}",
        testbed.network,
    )


def _ssh_key(path: Path, comment: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        machine.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def _ensure_keys(testbed: Testbed) -> None:
    _ssh_key(testbed.state_dir / "ssh/id_ed25519", f"flexai-testbed-{testbed.name}")
    lines = []
    for host in testbed.hosts:
        _ssh_key(host.directory / "ssh_host_ed25519_key", host.container)
        public = (host.directory / "ssh_host_ed25519_key.pub").read_text().rsplit(" ", 1)[0]
        lines.append(f"{host.address},{host.name} {public}\n")
    (testbed.state_dir / "ssh/known_hosts").write_text("".join(lines))


def _ensure_pci(host: Host) -> None:
    """Written once: later the directory is the test's, which may pull a card out."""
    directory = host.directory / "pci"
    if directory.exists():
        return
    scratch = host.directory / "pci.new"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for path, text in plan.pci_files(host.cards, host.switches).items():
        file = scratch / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    scratch.rename(directory)


def _ensure_var_lib(host: Host, archive: Path) -> None:
    """A volume of the machine's file system, filled from the image's own /var/lib."""
    directory = host.directory / "var-lib"
    if directory.exists():
        return
    scratch = host.directory / "var-lib.new"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    machine.run(
        ["tar", "--extract", f"--file={archive}", f"--directory={scratch}", "--numeric-owner"]
        + ["--xattrs", "--strip-components=3", "./var/lib"]
    )
    scratch.rename(directory)


def _lay_first_files(testbed: Testbed, host: Host) -> None:
    keys = {
        "authorized": (testbed.state_dir / "ssh/id_ed25519.pub").read_bytes(),
        "host": (host.directory / "ssh_host_ed25519_key").read_bytes(),
        "host.pub": (host.directory / "ssh_host_ed25519_key.pub").read_bytes(),
    }
    podman("cp", "-", f"{host.container}:/", input=plan.first_files(testbed, host, keys))


def system_state(host: Host) -> str:
    """What the host's systemd says of itself; empty while it does not answer."""
    return host.exec(["systemctl", "is-system-running"], check=False, timeout=10).stdout.strip()


def _crashes(host: Host) -> int:
    """How often podman has started the host again after its first process ended."""
    return int(podman("inspect", "--format", "{{.RestartCount}}", host.container).strip())


def last_words(host: Host) -> str:
    """The end of what the host's first process printed, before or without a journal."""
    argv = ["podman", "logs", "--tail=5", host.container]
    done = machine.run(argv, check=False)
    return (done.stdout + done.stderr).decode(errors="replace").strip()


def is_running(host: Host) -> bool:
    """Whether the host has a first process."""
    try:
        return host.pid() > 0
    except TestbedError:
        return False


def wait_until_booted(host: Host, deadline: float) -> None:
    """Wait for the host's systemd to have started everything."""
    crashes = _crashes(host)
    argv = ["systemctl", "is-system-running", "--wait"]
    while True:
        left = max(1.0, deadline - time.monotonic())
        state = host.exec(argv, check=False, timeout=left).stdout.strip()
        if state in SETTLED:
            return
        # A reboot asked for inside counts as one; its own first process ending again and again
        # would be waited for in vain.
        if _crashes(host) - crashes >= CRASHES or time.monotonic() >= deadline:
            raise TestbedError(
                f"host {host.name} did not boot: systemd says {state or 'nothing'!r}; "
                f"its first process said:\n{last_words(host)}",
                f"python -m testbed logs {host.name}",
            )
        time.sleep(0.3)


def _check_units(host: Host) -> None:
    failed = host.exec(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout
    if failed.strip():
        raise TestbedError(
            f"host {host.name}: units failed at its first boot:\n{failed.rstrip()}",
            f"python -m testbed logs {host.name}",
        )


def _ensure_host(
    testbed: Testbed,
    host: Host,
    image: str,
    archive: Path,
    manager: str,
    systemd: Sequence[str],
    found: dict[str, Any],
) -> str:
    """Bring one host up; returns what was done, in a word."""
    flags = plan.create_flags(testbed, host, image, manager, systemd)
    if found:
        if found["Labels"].get(LABEL_DEFINITION) != plan.definition(flags):
            raise TestbedError(
                f"container {host.container} was made from another image or by another version",
                f"python -m testbed down --name {testbed.name}, then up again",
            )
        if found["State"] in ALIVE and has_monitor(host.container):
            wait_until_booted(host, time.monotonic() + BOOT_SECONDS)
            return "was running"
        if found["State"] in ALIVE:
            note_death(found["Id"])
    _ensure_pci(host)
    _ensure_var_lib(host, archive)
    if not found:
        podman("create", *plan.labelled(flags))
    # "created": never started, so an up that was killed here did not finish laying files.
    fresh = not found or found["State"] in ("created", "configured")
    if fresh:
        _lay_first_files(testbed, host)
    start(host.container)
    wait_until_booted(host, time.monotonic() + BOOT_SECONDS)
    if fresh:
        _check_units(host)
    return "made" if not found else "started"


def _ensure_hosts(testbed: Testbed, cache: Cache, say: Say) -> None:
    systems = sorted({host.os for host in testbed.hosts})
    references = {system: _image(cache, system, say) for system in systems}
    archives = {system: images.build(cache, system) for system in systems}
    version, cgroups, manager = engine()
    systemd = plan.systemd_flags(version, cgroups)
    found = {entry["Names"][0]: entry for entry in containers(testbed.name)}
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures = {
            pool.submit(
                _ensure_host,
                testbed,
                host,
                references[host.os],
                archives[host.os],
                manager,
                systemd,
                found.get(host.container, {}),
            ): host
            for host in testbed.hosts
        }
        for count, future in enumerate(as_completed(futures), start=1):
            host = futures[future]
            say(f"host {host.name} ({host.os}) {future.result()} ({count} of {len(futures)})")


def boot_id(host: Host) -> str:
    """The host's own boot id."""
    return host.get("/proc/sys/kernel/random/boot_id").decode().strip()


def reboot(host: Host) -> tuple[str, str]:
    """Reboot a running host; its boot ids before and after."""
    before = boot_id(host)
    podman("restart", "--time=20", host.container)
    wait_until_booted(host, time.monotonic() + BOOT_SECONDS)
    return before, boot_id(host)


def hosts_up(topology: Topology, name: str, subnet: str | None, cache: Cache, say: Say) -> Testbed:
    """Hosts of *topology*, running. The caller holds the testbed's lock."""
    # A subnet is free until its network exists, so nobody else may choose one in between.
    with machine.locked(CHOICE_OF_SUBNET, remove=True):
        testbed = settle(topology, name, subnet)
        _ensure_network(testbed)
    say(f"testbed {name}: {len(testbed.hosts)} hosts in {testbed.subnet}")
    _ensure_keys(testbed)
    _ensure_hosts(testbed, cache, say)
    return testbed
