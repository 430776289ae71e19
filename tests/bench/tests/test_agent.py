# SPDX-License-Identifier: GPL-3.0-or-later
"""The node agent as shipped, beside simulated cards and tenants in slices.

What is awaited comes about sooner or later, however busy the machine is; shares are judged by the
cards' own ledger.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bench import figures, rig
from bench.rig import Rig, Slice, Tenant

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")
MIB = 1 << 20
CONTEXT = 414 * MIB  # of profile a100-40g
PATIENCE_S = 60.0
CARDS = 8  # a card of its own for each test: what one leaves behind is no other's trouble


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of NVML's faults; the agent reads it at every call."""
    file = tmp_path_factory.mktemp("faults") / "faults"
    file.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMGPU_FAULTS", str(file))
        patch.delenv("AGENT", raising=False)
        yield file


@pytest.fixture(scope="module")
def on(faults: Path) -> Iterator[Rig]:
    with rig.up(CARDS, agent=True) as made:
        yield made


@pytest.fixture
def ends(faults: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        stack.callback(faults.write_text, "")
        yield stack


def started(on: Rig, ends: ExitStack, made: Slice, card: int, shape: str = "deep") -> Tenant:
    tenant = on.start(made.place, "shape", rig.PTX, shape, 1, card=card)
    ends.callback(tenant.end)
    return tenant


def await_(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.05)


def log(on: Rig) -> str:
    assert on.agent is not None
    return on.agent.log.read_text()


def test_charges_that_hold_a_neighbours_time_are_corrected(on: Rig, ends: ExitStack) -> None:
    slices = [on.slice(0, cores_percent=40) for _ in range(2)]
    tenants = [started(on, ends, made, 0) for made in slices]
    await_(
        "both trims under 0.75",
        lambda: all(0 < made.grant().trim_q16 < 0.75 * 65536 for made in slices),
    )
    time.sleep(2)  # debts of before the trim
    before = on.readings(tenants)
    time.sleep(5)
    shares = [
        figures.share(first, last) for first, last in zip(before, on.readings(tenants), strict=True)
    ]
    # Without an agent both get about 27 %.
    assert all(35 < share < 45 for share in shares), shares


def test_memory_that_only_nvml_sees_is_published(on: Rig, ends: ExitStack) -> None:
    made = on.slice(1, cores_percent=50, memory_bytes=2048 * MIB)
    tenant = started(on, ends, made, 1, "mid")
    await_("the price of a context", lambda: made.grant().context_bytes == CONTEXT)

    def accounted() -> int:
        held = sum(process.memory_bytes[0] for process in made.processes())
        return held + made.grant().overhead_bytes

    await_("all memory accounted for", lambda: accounted() == on.memory([tenant])[0])


def test_a_killed_tenant_leaves_nothing_and_is_named(on: Rig, ends: ExitStack) -> None:
    made = on.slice(1, cores_percent=50, memory_bytes=2048 * MIB)
    tenant = started(on, ends, made, 1, "mid")
    await_("a slot", lambda: len(made.processes()) == 1)
    time.sleep(1)
    tenant.process.kill()
    tenant.process.wait()
    await_("the slot is free", lambda: not made.processes())
    line = f"key={made.directory.name} "
    found = [one for one in log(on).splitlines() if "slot was cleared" in one and line in one]
    assert len(found) == 1
    assert f"host_pid={tenant.pid} " in found[0]


def test_a_process_past_the_library_is_reported(on: Rig, ends: ExitStack) -> None:
    """In the slice's cgroup with memory of the card and no slot, as with a driver of its own."""
    made = on.slice(1, cores_percent=50)
    started(on, ends, made, 1, "mid")
    foreign = on.start(on.bare(), "shape", rig.PTX, "mid", 1, card=1)
    ends.callback(foreign.end)
    said = f"process {foreign.pid} of its container uses a card past the library"
    groups = {line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    if groups == {"/"}:  # everybody's cgroup is nobody's
        time.sleep(13)
        assert said not in log(on)
        return
    await_("the report", lambda: said in log(on))
    time.sleep(2)
    assert log(on).count(said) == 1
    assert foreign.process.poll() is None


def test_an_elastic_slice_borrows_until_the_neighbour_asks(on: Rig, ends: ExitStack) -> None:
    made = on.slice(2, cores_percent=30, mode="elastic")
    started(on, ends, made, 2)
    await_("all of the card", lambda: made.grant().effective_q16 == 100 << 16)
    other = on.slice(2, cores_percent=50)
    neighbour = started(on, ends, other, 2)
    await_("what the neighbour leaves", lambda: made.grant().effective_q16 == 50 << 16)
    neighbour.process.kill()
    neighbour.process.wait()
    await_("all of the card again", lambda: made.grant().effective_q16 == 100 << 16)


@pytest.mark.parametrize(
    ("card", "fault", "said"),
    [
        (3, "delay_ms 300", "samples cover less than 80 %"),
        (4, "missing_percent 60", "samples cover less than 80 %"),
        (5, "time_jump_ms 5000", "timestamps lie in the future"),
        (6, "lost_card 6", "card is lost"),
        (7, "unknown 1", "NVML does not answer for a card"),
    ],
)
def test_a_fault_of_nvml_freezes_the_trim_and_is_said_once(
    on: Rig, faults: Path, ends: ExitStack, card: int, fault: str, said: str
) -> None:
    made = on.slice(card, cores_percent=40)
    started(on, ends, made, card)
    await_("a trim from sound samples", lambda: made.grant().context_bytes == CONTEXT)

    def times() -> int:
        """Lines about this card."""
        return sum(said in line and on.uuids[card] in line for line in log(on).splitlines())

    assert times() == 0
    faults.write_text(f"{fault}\n")
    await_(said, lambda: times() > 0)
    time.sleep(1)  # until frozen for sure: coverage is of the last two seconds
    frozen = made.grant().trim_q16
    time.sleep(2)
    assert made.grant().trim_q16 == frozen
    assert times() == 1
