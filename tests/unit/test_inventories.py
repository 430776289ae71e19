# SPDX-License-Identifier: GPL-3.0-or-later
"""The example inventories hold: every variable is one that there is, explained, and of its type."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible_collections.flexai.xpu.plugins.module_utils._artefacts import FIRST_USE, parse
from ansible_collections.flexai.xpu.plugins.module_utils._site import SITE_VARIABLES
from ansible_collections.flexai.xpu.plugins.plugin_utils._controller import (
    NODE_ROLES,
    ROLES,
    role_specs,
)

from . import hostroot
from .test_playbooks import REPOSITORY, Site, run, site, variables

__all__ = ["site"]  # a fixture

SITE = REPOSITORY / "inventories/site50"
SURVEY = json.loads((REPOSITORY / "inventories/awx/survey.json").read_text())["spec"]
# An assignment, live or commented out.
NAMED = re.compile(r"^(?:# )?([a-z][a-z0-9_]+):(?: |$)")
CHECK = [
    {
        "hosts": "flexai_nodes",
        "gather_facts": False,
        "tasks": [{"flexai.xpu.site_input": {}, "run_once": True}],
    }
]


def options(role: str) -> dict[str, Any]:
    """The role's variables, of all its entry points."""
    points = yaml.safe_load((Path(ROLES) / role / "meta/argument_specs.yml").read_text())
    found: dict[str, Any] = {}
    for point in points["argument_specs"].values():
        found.update(point.get("options", {}))
    return found


def explained(file: Path) -> dict[str, bool]:
    """Variables that a file names → whether words stand above them (or above the ones before)."""
    found: dict[str, bool] = {}
    words = False
    for line in file.read_text().splitlines():
        named = NAMED.match(line)
        if named:
            found[named[1]] = words
        else:
            words = line.startswith("# ") and not line.startswith("# --")
    return found


def test_the_site_has_fifty_hosts_with_cards_of_two_systems_and_two_kinds() -> None:
    inventory = InventoryManager(loader=DataLoader(), sources=[str(SITE / "hosts.yml")])
    groups = {name: set(hosts) for name, hosts in inventory.get_groups_dict().items()}
    assert len(groups["flexai_nodes"]) == 50
    assert groups["a100"] | groups["h100"] == groups["flexai_nodes"]
    assert not groups["a100"] & groups["h100"]
    assert groups["ubuntu2204"] | groups["rhel9"] == groups["flexai_kubernetes"]
    assert not groups["ubuntu2204"] & groups["rhel9"]
    assert groups["flexai_kubernetes"] | groups["flexai_docker"] == groups["flexai_nodes"]
    assert groups["flexai_control_plane"]


def test_every_variable_of_site_and_host_roles_stands_there_explained() -> None:
    files = sorted((SITE / "group_vars").glob("*.yml"))
    both = explained(SITE / "group_vars/all.yml"), explained(SITE / "group_vars/flexai_nodes.yml")
    assert not both[0].keys() & both[1].keys()
    there = {**both[0], **both[1]}
    wanted = set(SITE_VARIABLES)
    for role in (*NODE_ROLES, "node_transaction"):
        wanted |= options(role).keys()
    assert wanted - there.keys() == set()
    unexplained = [name for file in files for name, words in explained(file).items() if not words]
    assert unexplained == []
    known = {*SITE_VARIABLES, *role_specs(), "ansible_user", "ansible_become"}
    assert {name for file in files for name in explained(file)} <= known


def test_the_manifest_is_one_of_vendors_files_with_digests_to_come() -> None:
    entries = parse(yaml.safe_load((SITE / "manifest.yml").read_text()), "manifest.yml")
    assert {entry.sha256 for entry in entries} == {FIRST_USE}
    assert all(entry.is_remote for entry in entries)


def test_the_site_passes_its_own_check(tmp_path: Path, site: Site) -> None:
    """All of it but the hosts themselves: names, types, versions, node names, artefacts."""
    manifest = hostroot.manifest(tmp_path / "artefacts")
    document = yaml.safe_load((SITE / "manifest.yml").read_text())
    ours = yaml.safe_load(manifest.read_text())["artefacts"]
    document["artefacts"] += [entry for entry in ours if entry["name"] == "xpu-runtime"]
    manifest.write_text(yaml.safe_dump(document))
    play = tmp_path / "play.yml"
    play.write_text(yaml.safe_dump(CHECK))
    del site["all"]["children"], site["all"]["vars"]  # nothing of the other tests' site
    more = ("-i", str(SITE), "-e", f"flexai_manifest={manifest}")
    done = run(tmp_path, site, play, *more)
    assert done.returncode == 0, done.stdout
    wrong = run(tmp_path, site, play, *more, "-e", "preflight_min_free_mib=plenty")
    assert "argument 'preflight_min_free_mib' is of type" in wrong.stdout


@pytest.mark.parametrize("question", SURVEY, ids=lambda question: question["variable"])
def test_a_survey_asks_for_scalars_that_there_are(question: dict[str, Any]) -> None:
    option = {**SITE_VARIABLES, **role_specs()}[question["variable"]]
    assert option["type"] in ("str", "path", "bool", "int")
    assert (question["type"] == "integer") == (option["type"] == "int")
    if option["type"] == "bool":
        assert question["choices"] == ["false", "true"]
    elif "choices" in option:
        assert question["choices"] == option["choices"]


def test_what_a_survey_sends_is_taken_although_it_is_text(tmp_path: Path, site: Site) -> None:
    """AWX gives answers as extra variables, each of them text."""
    answers = {question["variable"]: str(question["default"]) for question in SURVEY}
    answers["flexai_manifest"] = variables(site)["flexai_manifest"]
    answers["preflight_min_free_mib"] = "1"
    done = run(tmp_path, site, "nvidia", "--check", "-e", json.dumps(answers))
    assert done.returncode == 0, done.stdout
    assert "gpu1  nvidia_driver      install  driver absent → 580.95.05" in done.stdout
