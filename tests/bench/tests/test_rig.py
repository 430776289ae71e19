# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig itself: tenants meet the shipped library as in a container, foreign interposers run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bench import benchlib, launch, memory, rig
from bench.benchlib import Report
from bench.rig import Place, Rig, Tenant

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")
MIB = 1 << 20
LAUNCHES = 64


@pytest.fixture(scope="module")
def on() -> Iterator[Rig]:
    with rig.up() as made:
        yield made


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(on: Rig, ends: ExitStack, place: Place, verb: str, *words: object) -> Tenant:
    tenant = on.start(place, verb, *words)
    ends.callback(tenant.end)
    return tenant


def mapped(tenant: Tenant) -> str:
    return Path(f"/proc/{tenant.pid}/maps").read_text()


def test_a_small_foreign_interposer_sees_every_launch(
    on: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tmp_path / "launches"
    monkeypatch.setenv("BENCH_INTERPOSED", str(counted))
    place = on.behind(on.programs / "interposer.so")
    tenant = on.start(place, "launch", rig.PTX, 200, 1)
    assert len(tenant.ask(3)) == 3
    tenant.end()
    assert int(counted.read_text()) == 3 * LAUNCHES


def test_bench_launch_puts_a_named_interposer_in_the_table(
    on: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BASELINE= works with any that is preloaded; no figure is judged here."""
    other, counted = tmp_path / "other.so", tmp_path / "launches"
    other.symlink_to(on.programs / "interposer.so")
    reports: list[Report] = []

    def keep(report: Report) -> int:
        reports.append(report)
        return 0

    monkeypatch.setattr(benchlib, "publish", keep)
    for name, value in (("BASELINE", other), ("ROUNDS", "1"), ("BENCH_INTERPOSED", counted)):
        monkeypatch.setenv(name, str(value))
    assert launch.measure() == 0
    assert {"other.so", "small foreign interposer"} <= set(reports[0].baselines)
    # One round may not tell its cost from nothing.
    costly = reports[0].baselines["other.so"]["added per launch"].value > 0
    assert ("limited, against other.so" in reports[0].figures) == costly
    assert int(counted.read_text()) > 0, "it saw launches"


def test_a_slice_has_the_shipped_library_and_its_own_pages(on: Rig, ends: ExitStack) -> None:
    made = on.slice(cores_percent=80)
    tenant = started(on, ends, made.place, "launch", rig.PTX, 200, 1)
    tenant.ask(2)
    maps = mapped(tenant)
    assert str(on.library) in maps
    assert "/etc/xpu/config.page" in maps
    assert "/run/xpu/ledger.page" in maps
    assert made.ledger().launches == 2 * LAUNCHES


def test_the_bare_driver_is_bare(on: Rig, ends: ExitStack) -> None:
    tenant = started(on, ends, on.bare(), "launch", rig.PTX, 200, 1)
    assert str(on.driver) in mapped(tenant)
    assert "libcuda_direct" not in mapped(tenant)


def test_slices_do_not_show_on_the_host(on: Rig, ends: ExitStack) -> None:
    before = Path("/proc/self/mounts").read_text()
    started(on, ends, on.slice(memory_bytes=MIB).place, "launch", rig.PTX, 200, 1)
    assert Path("/proc/self/mounts").read_text() == before


def test_the_referee_sees_what_a_tenant_did(on: Rig, ends: ExitStack) -> None:
    tenant = started(on, ends, on.bare(), "launch", rig.PTX, 1_000_000, 1)
    tenant.ask(1)
    assert on.readings([tenant])[0].busy_ns == LAUNCHES * 1_000_000


def test_processes_without_a_quota_do_go_over_it(on: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of bench-memory is not empty: a slice that grants more is found out."""

    def generous(card: int = 0, **grant: int) -> rig.Slice:
        return Rig.slice(on, card, **{**grant, "memory_bytes": grant["memory_bytes"] + 2 * MIB})

    monkeypatch.setattr(on, "slice", generous)
    filled = memory.fill(on, "cuMemAlloc", 2)
    assert filled is not None
    assert filled.over_quota == 2 * MIB


def test_a_load_that_can_t_start_says_why(on: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(rig.RigError, match="ended with 1"):
        on.start(on.bare(), "launch", "/no/such.ptx", 200, 1)
    assert "/no/such.ptx: no PTX text there" in capfd.readouterr().err


def test_an_unknown_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "imagined")
    with pytest.raises(rig.RigError, match="DEVICE=imagined"), rig.up():
        pass
