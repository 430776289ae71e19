# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: parse, call, exit. ``python -m testbed --help`` lists the verbs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from xpubuild.cache import Cache
from xpubuild.toolchain import ToolchainError

from . import down as removal
from . import machine, up
from . import prune as unused_images
from .errors import TestbedError
from .hosts import STATE_ROOT, Host, Testbed, load
from .topology import check_name, check_subnet, read_topology

console = Console(stderr=True, highlight=False)


def _say_from(started: float) -> Callable[[str], None]:
    def say(message: str) -> None:
        elapsed = f"{time.monotonic() - started:6.1f} s"
        console.print(f"[dim]{elapsed}[/dim]  {escape(message)}", soft_wrap=True)

    return say


def _name_option(command: Any) -> Any:
    return click.option(
        "--name",
        envvar="FLEXAI_TESTBED",
        default="demo",
        show_default=True,
        help="Which testbed (environment: FLEXAI_TESTBED).",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Throw-away machines for tests, on this one: systemd hosts, simulated cards, Kubernetes."""


@cli.command("up")
@click.argument("topology", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the testbed; default: the one in the topology.")
@click.option("--subnet", help="Use this network in place of the topology's.")
def up_command(topology: Path, name: str | None, subnet: str | None) -> None:
    """Bring up the testbed that the file TOPOLOGY describes, or what is missing of it."""
    wanted = read_topology(topology)
    name = check_name(name or wanted.name, "--name")
    subnet = check_subnet(subnet, "--subnet") if subnet else None
    machine.prepare()
    started = time.monotonic()
    say = _say_from(started)
    cache = Cache()
    with machine.locked(name):
        testbed = up.hosts_up(wanted, name, subnet, cache, say)
        if testbed.by_role("control-plane"):
            testbed = _cluster_up(testbed, cache, say)
    say(f"testbed {name} is up; look: python -m testbed status --name {name}")


def _cluster_up(testbed: Testbed, cache: Cache, say: Callable[[str], None]) -> Testbed:
    from . import cluster

    say("Kubernetes …")
    testbed = replace(testbed, kubeconfig=cluster.up(testbed, cache, say))
    testbed.save()
    return testbed


@cli.command("down")
@_name_option
def down_command(name: str) -> None:
    """Remove a testbed completely; also a half-made or half-removed one."""
    check_name(name, "--name")
    machine.prepare()
    say = _say_from(time.monotonic())
    with machine.locked(name, remove=True):
        removed = removal.remove(name)
    say(f"testbed {name} is removed" if removed else f"nothing of testbed {name} here")


@cli.command("reboot")
@click.argument("host")
@_name_option
def reboot_command(host: str, name: str) -> None:
    """Reboot HOST; it comes back with a new boot id."""
    machine.prepare()
    target = load(name).host(host)
    say = _say_from(time.monotonic())
    with machine.locked(name):
        before, after = up.reboot(target)
    say(f"host {host} rebooted: boot id {before} → {after}")


def _host_status(host: Host) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": host.name,
        "address": host.address,
        "os": host.os,
        "roles": list(host.roles),
        "cards": [card.profile for card in host.cards],
        "system": "stopped",
        "boot_id": None,
    }
    if up.is_running(host):
        status["system"] = up.system_state(host)
        status["boot_id"] = up.boot_id(host)
    return status


def _status(testbed: Testbed) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": testbed.name,
        "subnet": testbed.subnet,
        "hosts": [_host_status(host) for host in testbed.hosts],
        "kubeconfig": str(testbed.kubeconfig) if testbed.kubeconfig else None,
        "cluster": None,
    }
    if testbed.kubeconfig:
        from . import cluster

        document["cluster"] = cluster.status(testbed)
    return document


def _table(document: dict[str, Any]) -> Table:
    table = Table(title=f"testbed {document['name']} in {document['subnet']}")
    for column in ("host", "address", "system", "roles", "cards", "state"):
        table.add_column(column)
    for host in document["hosts"]:
        cards = host["cards"]
        table.add_row(
            host["name"],
            host["address"],
            host["os"],
            ", ".join(host["roles"]),
            f"{len(cards)} x {cards[0]}" if cards else "-",
            host["system"],
        )
    return table


@cli.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@_name_option
def status_command(name: str, as_json: bool) -> None:
    """Show hosts and cluster of a testbed."""
    machine.prepare()
    document = _status(load(name))
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    out = Console(highlight=False)
    out.print(_table(document))
    if document["cluster"] is not None:
        out.print_json(data=document["cluster"])


@cli.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_name_option
def exec_command(host: str, command: tuple[str, ...], name: str) -> None:
    """Run COMMAND on HOST as root; its exit status is ours."""
    machine.prepare()
    container = load(name).host(host).container
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    os.execvp("podman", ["podman", "exec", "-i", *terminal, container, *command])


@cli.command("logs")
@click.argument("host")
@click.option("--follow", "-f", is_flag=True, help="Go on showing new lines.")
@click.option("--unit", "-u", help="Only this systemd unit.")
@_name_option
def logs_command(host: str, follow: bool, unit: str | None, name: str) -> None:
    """Show HOST's journal since its boot."""
    machine.prepare()
    target = load(name).host(host)
    if not up.is_running(target):
        click.echo(f"host {host} is not running; its first process said:", err=True)
        click.echo(up.last_words(target))
        return
    extra = (["--follow"] if follow else []) + ([f"--unit={unit}"] if unit else [])
    argv = ["podman", "exec", "-i", target.container, "journalctl", "--boot", "--no-pager", *extra]
    raise SystemExit(subprocess.run(argv, check=False).returncode)


@cli.command("kubeconfig")
@_name_option
def kubeconfig_command(name: str) -> None:
    """Print the kubeconfig's path, for export KUBECONFIG=$(python -m testbed kubeconfig)."""
    path = load(name).kubeconfig
    if path is None:
        raise TestbedError(
            f"testbed {name!r} has no cluster, or its cluster did not come up",
            f"python -m testbed status --name {name}",
        )
    click.echo(path)


@cli.command("prune")
def prune_command() -> None:
    """Remove host images that no testbed uses: what older versions of them left."""
    machine.prepare()
    say = _say_from(time.monotonic())
    say(f"unused host images removed: {unused_images.prune(say)}")


@cli.command("list")
def list_command() -> None:
    """Names of the testbeds on this machine."""
    if STATE_ROOT.is_dir():
        for path in sorted(STATE_ROOT.iterdir()):
            if re.fullmatch(r"[a-z][a-z0-9-]*", path.name):
                click.echo(path.name)


def main() -> int:
    """Run the command line; mistakes a person can mend are told without a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        console.print("interrupted; a repeated up goes on where this one stopped")
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except (TestbedError, ToolchainError) as error:
        console.print(f"error: {escape(str(error))}", soft_wrap=True)
        return 1
    return 0
