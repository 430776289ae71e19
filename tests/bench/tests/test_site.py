# SPDX-License-Identifier: GPL-3.0-or-later
"""bench-site's own judgement: what it counts is what happened."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bench import fleet, realfleet, site
from unit import hostroot

PLAN = """\
TASK [flexai.xpu.preflight : Show the plan of all hosts] ***
host0001  nvidia_driver      change  driver 535.183.06 → 580.95.05
host0002  xpu_runtime        install  /opt/xpu is missing
ok: [host0000]
"""


def test_a_drifted_host_counts_when_its_component_is_named() -> None:
    assert site.named_components(PLAN, {"host0001": "nvidia_driver"}) == (1, 1)
    assert site.named_components(PLAN, {"host0001": "xpu_runtime"}) == (0, 1)
    assert site.named_components("plan: nothing to do on 3 hosts", {"host0001": "x"}) == (0, 0)


def test_changed_hosts_are_read_from_the_recap_only() -> None:
    output = (
        "changed=9\nPLAY RECAP ***\nh1 : ok=2 changed=1 failed=0\nh2 : ok=2 changed=0 failed=0\n"
    )
    assert site.changed_hosts(output) == 1


def test_every_module_start_is_counted_at_the_host(tmp_path: Path) -> None:
    (host,) = fleet.make(tmp_path, 1)
    for _ in range(2):
        subprocess.run([str(host.interpreter), "-c", "pass"], check=True)
    assert host.executions() == 2


def test_each_drift_really_changes_the_root(tmp_path: Path) -> None:
    hosts = fleet.make(tmp_path, len(fleet.DRIFTS))
    for host, (_component, change) in zip(hosts, fleet.DRIFTS.values(), strict=True):
        before = snapshot(host.root)
        change(host)
        assert snapshot(host.root) != before


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(path): hostroot.digest(path) if not path.is_symlink() else str(path.readlink())
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_the_shells_times_are_read_per_execution() -> None:
    text = "0m0.010000s 0m0.000000s\n0m0.250000s 0m0.040000s\n" * 2
    assert realfleet.read(text).executions == 2
    assert realfleet.read(text).cpu_s == pytest.approx(0.6)
    assert realfleet.read("") == realfleet.Book(0, 0)
