# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: the main job on one machine without a GPU, and a way to look around afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
from ansible_collections.flexai.xpu.plugins.module_utils._verdict import table
from testbed import machine
from testbed.artefacts import publish_all
from testbed.errors import TestbedError
from xpubuild.toolchain import ToolchainError

from e2e import serving
from e2e.platform import ROOT, TOPOLOGY, Platform, PlatformError, must

MONITOR = "/opt/xpu/bin/gpu-monitor"


def heading(text: str) -> None:
    """Say what comes next."""
    click.secho(f"\n== {text}", bold=True)


def show_verdict(verdict: dict[str, Any]) -> None:
    """The verdict as the playbook shows it."""
    click.echo(f"site {verdict['site']}: {'ready' if verdict['ready'] else 'NOT ready'}")
    click.echo("\n".join(table(verdict["nodes"])))


def show_slice(platform: Platform, pod: str, period_s: int) -> None:
    """The monitor's lines from inside the pod."""
    heading(f"gpu-monitor -p {period_s} in {pod}")
    click.echo(platform.in_pod(pod, MONITOR, "-p", str(period_s)).output.rstrip())


def show_serving(platform: Platform) -> None:
    """The group of two members, and an answer of it through its Service."""
    done = serving.inference(platform, "pair", playbook="inference_status")
    click.echo("\n".join(serving.table(done)))
    said = serving.chat(platform, *serving.PAIR, "one two three")
    click.echo(f"chat through Service {'/'.join(serving.PAIR[:2])}: {said!r}")


def around(platform: Platform) -> str:
    """What a person can do next; another testbed than the usual one has to be named to make."""
    which = "" if platform.name == "demo" else f" TESTBED={platform.name}"
    return f"""
Look around:
  export KUBECONFIG={platform.kubeconfig}
  build/venv/bin/python -m testbed exec --name {platform.name} gpu1 -- nvidia-smi
  build/venv/bin/python -m testbed exec --name {platform.name} cp1 -- kubectl get pods -A -o wide
  cat {platform.verdict_file}
  make demo-status{which}     hosts, nodes, slices, the monitor's lines
  make demo-down{which}       remove everything"""


@click.group()
def cli() -> None:
    """The demo."""


@cli.command()
@click.option("--name", default="demo", show_default=True, help="name of the testbed")
@click.option("--subnet", default="", help="use this network in place of the topology's")
def up(name: str, subnet: str) -> None:
    """Build, raise the testbed, run site.yml, show a workload on a slice and a serving group."""
    # Before the builds: who lacks root or podman shall not hear it after a quarter of an hour.
    machine.prepare()
    platform = Platform(name)
    heading("artefacts")
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    heading("testbed: systemd hosts and a Kubernetes")
    network = ["--subnet", subnet] if subnet else []
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", name, *network])
    heading("site.yml: from bare hosts to sliced GPUs")
    done = platform.playbook("site")
    click.echo(done.output[done.output.index("PLAY RECAP") :].rstrip())
    heading("verdict")
    verdict = platform.verdict()
    show_verdict(verdict)
    if not verdict["ready"]:
        raise PlatformError(f"the site is not ready: {json.dumps(verdict)}")
    heading("workload: Deployment and Service of document 000 on a slice of 20 % and 3 GiB")
    pod = platform.start_workload()
    show_slice(platform, pod, period_s=10)
    nodes = serving.nodes(platform)
    engine = serving.best(nodes[0].directory)
    heading(f"serving: one model over two pods on two nodes, by {engine.name}")
    serving.place(engine, nodes)
    serving.inference(platform, "pair")
    show_serving(platform)
    click.echo(around(platform))


@cli.command()
@click.option("--name", default="demo", show_default=True, help="name of the testbed")
def status(name: str) -> None:
    """Hosts, nodes, verdict, the slice's monitor lines and the serving group."""
    platform = Platform(name)
    must([sys.executable, "-m", "testbed", "status", "--name", name])
    heading("nodes and pods")
    click.echo(platform.kubectl("get", "nodes,pods", "-A", "-o", "wide").output.rstrip())
    heading("verdict of the last run")
    show_verdict(platform.verdict())
    show_slice(platform, platform.start_workload(), period_s=2)
    heading("the serving group")
    show_serving(platform)
    click.echo(around(platform))


def main() -> None:
    """Run the command line; a failed step is its output and one sentence, not a traceback."""
    try:
        cli(prog_name="demo")
    except (
        FileNotFoundError,
        PlatformError,
        TestbedError,
        ToolchainError,
        subprocess.SubprocessError,
    ) as error:
        click.secho(f"demo: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
