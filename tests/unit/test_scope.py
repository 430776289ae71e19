# SPDX-License-Identifier: GPL-3.0-or-later
"""A run may be about some components or hosts: it then needs, plans and judges these alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from . import hostroot
from .test_playbooks import Site, files, run, site, variables

__all__ = ["site"]  # a fixture

NVIDIA = {"nvidia_driver", "container_toolkit", "container_runtime"}
# Playbook and options → the components that the plan names, on which hosts.
SCOPES: dict[str, tuple[tuple[str, ...], set[str], set[str]]] = {
    "nvidia on one host": (("nvidia", "--limit", "gpu1"), NVIDIA, {"gpu1"}),
    "a component as a tag": (
        ("nvidia", "--tags", "container_toolkit"),
        {"container_toolkit"},
        {"gpu1", "gpu2"},
    ),
    "components left out": (
        ("site", "--skip-tags", "xpu_runtime,xpu_agent,images", "--limit", "gpu2"),
        NVIDIA,
        {"gpu2"},
    ),
}


def applied(output: str) -> set[str]:
    """Roles of which tasks ran, without the one that looks."""
    found = set(re.findall(r"^TASK \[flexai\.xpu\.(\w+) : ", output, re.MULTILINE))
    return found - {"preflight"}


def without_xpu_runtime(site: Site) -> None:
    """A site that has nothing but the vendor's files."""
    manifest = Path(variables(site)["flexai_manifest"])
    document = yaml.safe_load(manifest.read_text())
    document["artefacts"] = [e for e in document["artefacts"] if e["name"] != "xpu-runtime"]
    manifest.write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_run_predicts_what_it_is_about_and_nothing_else(
    scope: str, tmp_path: Path, site: Site
) -> None:
    (playbook, *options), components, hosts = SCOPES[scope]
    without_xpu_runtime(site)
    verdict = tmp_path / "verdict.json"
    variables(site)["flexai_verdict_file"] = str(verdict)
    before = files(tmp_path / "gpu1", tmp_path / "gpu2")
    done = run(tmp_path, site, playbook, "--check", "--diff", *options)
    assert done.returncode == 0, done.stdout
    assert files(tmp_path / "gpu1", tmp_path / "gpu2") == before
    judged = {
        node["name"]: {part["name"] for part in node["components"]}
        for node in json.loads(verdict.read_text())["nodes"]
    }
    assert {host: judged[host] for host in hosts} == dict.fromkeys(hosts, components)
    planned = {
        tuple(line.split()[:2])
        for line in done.stdout.splitlines()
        if line.split()[2:3] == ["install"]
    }
    assert planned == {(host, component) for host in hosts for component in components}
    assert applied(done.stdout) == components


def test_a_run_about_the_cluster_changes_no_host(tmp_path: Path, site: Site) -> None:
    done = run(tmp_path, site, "site", "--check", "--tags", "cluster", "--limit", "gpu1")
    assert done.returncode == 0, done.stdout
    assert applied(done.stdout) == set()


def test_a_whole_run_still_needs_every_artefact(tmp_path: Path, site: Site) -> None:
    without_xpu_runtime(site)
    done = run(tmp_path, site, "site", "--check")
    assert done.returncode != 0
    assert "has no artefact xpu-runtime" in done.stdout


def test_nothing_to_do_for_nvidia_is_ready_though_the_rest_is_missing(
    tmp_path: Path, site: Site
) -> None:
    for name in ("gpu1", "gpu2"):
        hostroot.ready(tmp_path / name)
        (tmp_path / name / "opt/xpu/current").unlink()
    done = run(tmp_path, site, "nvidia")
    assert done.returncode == 0, done.stdout
    assert not re.search(r"changed=[1-9]", done.stdout), done.stdout
    assert "nothing to do on 2 hosts" in done.stdout


def test_validate_alone_is_about_the_nodes_and_no_controller(tmp_path: Path, site: Site) -> None:
    for name in ("gpu1", "gpu2"):
        hostroot.ready(tmp_path / name)
    done = run(tmp_path, site, "validate")
    assert done.returncode == 0, done.stdout
    assert not re.search(r"changed=[1-9]", done.stdout), done.stdout
    assert "nothing to do on 2 hosts" in done.stdout
    assert not re.search(r"(ok|fatal): \[localhost\]", done.stdout), done.stdout


def test_with_limit_the_verdict_is_about_these_hosts(tmp_path: Path, site: Site) -> None:
    hostroot.ready(tmp_path / "gpu1")
    verdict = tmp_path / "verdict.json"
    variables(site)["flexai_verdict_file"] = str(verdict)
    done = run(tmp_path, site, "site", "--limit", "gpu1")
    assert done.returncode == 0, done.stdout
    assert [node["name"] for node in json.loads(verdict.read_text())["nodes"]] == ["gpu1"]
