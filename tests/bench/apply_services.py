# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-apply``: 100 unchanged inference services in one execution of the module.

The module runs as a playbook's task would run it, with Ansible's own start in the time, against the
API server of a testbed that has nothing else. The services scale, and rest at zero groups, so that
no pod is needed for them to be as they shall.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.flexai.xpu.plugins.filter.render_inference import collection_scripts
from e2e.platform import ROOT, Platform, PlatformError, must
from testbed.recipes import crds
from xpubuild.cache import Cache

from bench.benchlib import Figure, Report, publish
from bench.fake_nodes import TOPOLOGY

SERVICES, TARGET_S = 100, 5.0
ROUNDS = int(os.environ.get("ROUNDS", "5"))
NAMESPACE = "bench"
ANSIBLE = Path(sysconfig.get_path("scripts")) / "ansible"
FIELDS = ("changed", "steps", "msg")


def service(number: int) -> dict[str, Any]:
    """Two pods a group; a group comes when there is load."""
    amounts = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    container = {"name": "engine", "resources": {"limits": amounts}}
    role = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
    trigger = {"server": "http://prometheus:9090", "query": "sum(load)"}
    return {
        "apiVersion": "system.hero.ai/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": f"service-{number}", "namespace": NAMESPACE},
        "spec": {
            "servers": {"leader": role, "worker": role},
            "flexai": {
                "engine": {"name": "vllm", "version": "0.20.0"},
                "model": {"path": "/models/Qwen2-7B-Instruct"},
                "parallelism": {"tp": 2, "pp": 2},
                "scaling": {"mode": "keda", "min_groups": 0, "prometheus": trigger},
            },
        },
    }


class Verbatim(str):
    """Text that Ansible takes for no template: a shell's ``${#`` would open a comment there."""


class Dumper(yaml.SafeDumper):
    """Writes :class:`Verbatim` with Ansible's tag for it."""


Dumper.add_representer(
    Verbatim, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style="|")
)


def execute(kubeconfig: Path, state: str = "present") -> tuple[float, dict[str, Any]]:
    """(seconds, result) of one execution."""
    arguments = {
        "kubeconfig": str(kubeconfig),
        "services": [service(number) for number in range(SERVICES)],
        "scripts": {name: Verbatim(text) for name, text in collection_scripts().items()},
        "state": state,
    }
    play = [
        {
            "hosts": "localhost", "connection": "local", "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable},
            "tasks": [{"flexai.xpu.inference_service": arguments}],
        }
    ]  # fmt: skip
    file = ROOT / "build" / "bench" / "apply-play.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.dump(play, Dumper=Dumper))
    began = time.perf_counter()
    done = subprocess.run(
        [str(ANSIBLE) + "-playbook", "-i", "localhost,", str(file)],
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise PlatformError(done.stdout[-3000:] + done.stderr[-1000:])
    result = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
    return took, {key: result.get(key) for key in FIELDS}


def measure(kubeconfig: Path) -> dict[str, Figure]:
    """First all are made, then nothing is to be done."""
    first, made = execute(kubeconfig)
    rounds = [execute(kubeconfig) for _ in range(ROUNDS)]
    seconds = [took for took, _ in rounds]
    return {
        f"{SERVICES} unchanged services": Figure(statistics.median(seconds), "s", TARGET_S),
        "worst round": Figure(max(seconds), "s"),
        "rounds that changed something": Figure(
            sum(bool(found["changed"]) for _, found in rounds), "rounds", 0
        ),
        "making them": Figure(first, "s"),
        "objects": Figure(len(made["steps"]), "objects"),
    }


def main() -> int:
    platform = Platform(f"bench-apply-{os.getpid()}")
    testbed = [sys.executable, "-m", "testbed"]
    try:
        must([*testbed, "up", str(TOPOLOGY), "--name", platform.name])
        for path in sorted(crds.build(Cache()).glob("*.yaml")):
            platform.kubectl("apply", "--server-side", "-f", str(path))
        platform.kubectl("create", "namespace", NAMESPACE)
        figures = measure(platform.kubeconfig)
    finally:
        subprocess.run([*testbed, "down", "--name", platform.name], cwd=ROOT, check=True)
    method = (
        f"median of {ROUNDS} executions of a playbook with one task, Ansible's start included; "
        "API server, etcd and controllers of a testbed on this machine"
    )
    return publish(Report("apply", method, "none", figures))


if __name__ == "__main__":
    sys.exit(main())
