# SPDX-License-Identifier: GPL-3.0-or-later
"""uninstall.yml brings back what was before site.yml, and refuses while slices are held."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from testbed.artefacts import publish_all

from e2e import snapshot
from e2e.platform import ROOT, Platform, must, recap

pytestmark = pytest.mark.soak

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "molecule.yaml"
HOSTS = ("cp1", "gpu1", "dock1")
# What the README of role container_runtime names: a changed configuration takes a restart.
NAMED = ("start of containerd.service", "start of docker.service")
CLUSTER_WIDE = (
    "namespaces,customresourcedefinitions,runtimeclasses,clusterroles,clusterrolebindings"
)
NODE_MARKS = "{range .items[*]}{.metadata.name} {.metadata.labels} {.metadata.annotations}{end}"


@pytest.fixture(scope="module")
def bare() -> Iterator[Platform]:
    """A testbed of its own without anything of ours."""
    platform = Platform("uninstall")
    down = [sys.executable, "-m", "testbed", "down", "--name", platform.name]
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    subprocess.run(down, cwd=ROOT, check=True)
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", platform.name])
    yield platform
    subprocess.run(down, cwd=ROOT, check=True)


def look(platform: Platform) -> dict[str, snapshot.Snapshot]:
    """The hosts, and the cluster as if it were one more."""

    def on_host(host: str, *command: str) -> str:
        return platform.on_host(host, *command).output

    found = {host: snapshot.take(on_host, host) for host in HOSTS}
    objects = platform.kubectl("get", CLUSTER_WIDE, "-o", "name").output
    marks = platform.kubectl("get", "nodes", "-o", f"jsonpath={NODE_MARKS}").output
    found["cluster"] = {**dict.fromkeys(objects.split(), "present"), "nodes": marks}
    return found


def changed(output: str) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in recap(output).items()}


def test_there_and_back(bare: Platform) -> None:
    before = look(bare)
    bare.playbook("site")
    installed = look(bare)

    pod = bare.start_workload()
    refused = bare.playbook("uninstall", check=False)
    assert refused.rc != 0
    assert f"pod {pod} on gpu1" in refused.output
    assert set(changed(refused.output).values()) == {0}
    bare.kubectl("delete", "namespace", "slice-demo", "--wait=true")

    predicted = changed(bare.playbook("uninstall", "--check", "--diff").output)
    assert {host: snapshot.differences(installed[host], look(bare)[host]) for host in HOSTS} == {
        host: [] for host in HOSTS
    }
    assert all(predicted.values()), predicted

    bare.playbook("uninstall")
    after = look(bare)
    left = {
        place: [
            line
            for line in snapshot.differences(before[place], after[place])
            if not line.startswith(NAMED)
        ]
        for place in before
    }
    assert left == {place: [] for place in before}
    again = changed(bare.playbook("uninstall").output)
    assert set(again.values()) == {0}, again
