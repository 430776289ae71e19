# SPDX-License-Identifier: GPL-3.0-or-later
"""What role volcano tells the scheduler, rendered by Ansible itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/volcano"
ACTIONS = {
    False: "enqueue, allocate, backfill",
    True: "enqueue, allocate, preempt, reclaim, backfill",
}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def configuration(**given: object) -> str:
    variables = {**load(ROLE / "defaults/main.yml"), **given}
    templar = Templar(loader=DataLoader(), variables=variables)
    text = load(ROLE / "vars/main.yml")["__volcano_scheduler_configuration"]
    # A value that comes from a file is trusted; ansible-core 2.19 wants to be told.
    try:
        from ansible.template import trust_as_template

        text = trust_as_template(text)
    except ImportError:
        pass
    return str(templar.template(text))


def arguments(text: str) -> dict[str, Any]:
    first = yaml.safe_load(text)["tiers"][0]["plugins"][0]
    assert first["name"] == "huawei-xpu", "another plugin would speak of victims first"
    found: dict[str, Any] = first["arguments"]
    return found


def test_tests_and_benchmark_run_what_the_role_configures() -> None:
    tried = (ROOT / "native/volcano/harness/scheduler.conf").read_text(encoding="utf-8")
    licence, tried = tried.split("\n", 1)
    assert licence.startswith("# SPDX")
    assert configuration(volcano_preemption=True).strip() == tried.strip()


@pytest.mark.parametrize("preemption", [False, True])
def test_nobody_is_evicted_unless_the_site_wants_it(preemption: bool) -> None:
    found = yaml.safe_load(configuration(volcano_preemption=preemption))
    assert found["actions"] == ACTIONS[preemption]


def test_arguments_reach_the_plugin_in_their_types() -> None:
    text = configuration(
        volcano_policy="topology",
        volcano_weight=3,
        volcano_mix_classes=True,
        volcano_default_class="best-effort",
    )
    assert arguments(text) == {
        "huawei-xpu.policy": "topology",
        "huawei-xpu.weight": 3,
        "huawei-xpu.mix-classes": True,
        "huawei-xpu.default-class": "best-effort",
    }


def test_without_a_default_class_none_is_written() -> None:
    assert "huawei-xpu.default-class" not in arguments(configuration())


def test_beside_a_foreign_volcano_the_plugin_is_told_its_name() -> None:
    # What role volcano's decide.yml finds.
    text = configuration(volcano_scheduler_name="flexai-volcano")
    assert arguments(text)["huawei-xpu.beside-as"] == "flexai-volcano"
    alone = configuration(volcano_scheduler_name="volcano")
    assert "huawei-xpu.beside-as" not in arguments(alone)


def test_no_later_tier_names_victims() -> None:
    later = yaml.safe_load(configuration())["tiers"][1]["plugins"]
    for plugin in later:
        if plugin["name"] in ("drf", "proportion"):
            assert plugin["enableReclaimable"] is False
        if plugin["name"] == "drf":
            assert plugin["enablePreemptable"] is False
