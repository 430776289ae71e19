# SPDX-License-Identifier: GPL-3.0-or-later
"""Another driver for a site that works: drained node by node, budgets held, nothing left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Demo
from e2e.drivers import NEWER, OLDER, with_older_driver
from e2e.platform import ROOT, Platform, Run

BUDGET = """\
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: keep, namespace: slice-demo}
spec:
  minAvailable: 1
  selector: {matchLabels: {app: slice-demo}}
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drivers")
    return with_older_driver(ROOT / "build/artefacts/manifest.yml", directory)


@pytest.fixture
def site(demo: Demo, manifest: Path) -> Iterator[Platform]:
    """The site, which has its own driver again afterwards."""
    platform = demo.platform
    yield platform
    platform.kubectl("-n", "slice-demo", "delete", "pdb", "keep", "--ignore-not-found")
    to_version(platform, manifest, NEWER)
    assert platform.verdict()["ready"]


def to_version(platform: Platform, manifest: Path, version: str, limit_s: int = 60) -> Run:
    variables = {
        "flexai_manifest": str(manifest),
        "nvidia_driver_version": version,
        "nvidia_driver_allow_downgrade": True,
        "node_transaction_drain_limit_s": limit_s,
    }
    return platform.playbook("site", "--extra-vars", json.dumps(variables), check=False)


def driver_on(platform: Platform, host: str) -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return platform.on_host(host, *query).output.split()[0]


def node(platform: Platform, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(platform.kubectl("get", "node", name, "-o", "json").output)
    return found


def test_a_driver_is_replaced_node_by_node_and_a_budget_is_held(
    site: Platform, manifest: Path
) -> None:
    pod = site.start_workload()
    name = pod.split("/")[1]
    found = site.kubectl("-n", "slice-demo", "get", "pod", name, "-o", "jsonpath={.spec.nodeName}")
    held = found.output.strip()
    (other,) = {"gpu1", "gpu2"} - {held}
    site.kubectl("apply", "-f", "-", stdin=BUDGET)

    done = to_version(site, manifest, OLDER, limit_s=10)
    said = " ".join(done.output.split())
    assert done.rc != 0
    assert f"Node {held} could not be drained within 10 s: slice-demo/{name} (" in said
    assert "The disruption budget keep needs 1 healthy pods and has 1 currently" in said
    assert "It is uncordoned again; the host was not changed." in said
    assert driver_on(site, held) == NEWER
    assert driver_on(site, other) == OLDER
    for each in (held, other):
        assert "unschedulable" not in node(site, each)["spec"]
        assert "flexai.io/transaction" not in node(site, each)["metadata"]["annotations"]
        assert node(site, each)["metadata"]["labels"]["gpupool.com/gpu-ready"] == "true"

    site.kubectl("-n", "slice-demo", "delete", "pdb", "keep")
    done = to_version(site, manifest, OLDER)
    assert done.rc == 0, done.output
    assert site.verdict()["ready"]
    assert driver_on(site, held) == OLDER
    assert "unschedulable" not in node(site, held)["spec"]
    assert site.start_workload()


def test_a_node_whose_cards_somebody_else_hands_out_is_refused_before_any_change(
    demo: Demo,
) -> None:
    platform, amount = demo.platform, {"nvidia.com/gpu": "2"}
    patch = ("patch", "node", "gpu1", "--subresource=status", "--type=merge", "-p")
    status = {"status": {"capacity": amount, "allocatable": amount}}
    before = node(platform, "gpu1")["metadata"]["labels"]
    platform.kubectl(*patch, json.dumps(status))
    try:
        done = platform.playbook("site", check=False)
    finally:
        gone = {"status": {part: {"nvidia.com/gpu": None} for part in ("capacity", "allocatable")}}
        platform.kubectl(*patch, json.dumps(gone))
    said = " ".join(done.output.split())
    assert done.rc != 0
    assert (
        "cluster: gpupool is blocked: another device plugin hands out the cards of gpu1 as "
        "nvidia.com/gpu already; keep it off these nodes"
    ) in said
    assert "PLAY [Change]" not in done.output
    assert node(platform, "gpu1")["metadata"]["labels"] == before
