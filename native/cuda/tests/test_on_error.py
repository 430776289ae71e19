# SPDX-License-Identifier: Apache-2.0
"""The node's policy for a slice whose pages are unusable: run on, or get no device memory."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from xpu_slice import GIB, HERE, Slice

OUT_OF_MEMORY = 2
TOTAL = 8 * GIB  # of the stub's device
POLICY = "by the node's policy this process gets no device memory"
RUN = (
    "import ctypes, tenant as t; l = t.open_driver(); t.spin(l, 1000); "
    "p = ctypes.c_void_p(); assert l.cuStreamSynchronize(None) == 0; "
    "print(t.allocate(l, 1)[0], t.allocate(l, 1 << 30)[0], *t.free_and_total(l))"
)


def damage(within: Slice, what: str) -> None:
    if what == "no config":
        within.config.unlink()
    elif what == "config":
        within.config.write_bytes(b"garbage" * 1000)
    elif what == "short config":
        within.config.write_bytes(within.config.read_bytes()[:100])
    elif what == "upstream's":
        within.grant_upstream(memory_mib=1024, cores_percent=101)
    elif what == "no ledger":
        within.ledger_file.unlink()
    elif what == "ledger":
        within.ledger_file.write_bytes(b"x" * within.ledger_file.stat().st_size)
    else:
        within.ledger_file.write_bytes(b"")


def says(within: Slice, **more: str) -> Any:
    path = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**within.environment, "PYTHONPATH": path, **more},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()], done.stderr


CONFIGS = ["no config", "config", "short config", "upstream's"]
LEDGERS = ["no ledger", "ledger", "short ledger"]


@pytest.mark.parametrize("what", [*CONFIGS, *LEDGERS])
def test_deny_new_memory_denies_memory_and_nothing_else(stub: Slice, what: str) -> None:
    stub.grant(memory_bytes=3 * GIB, context_bytes=GIB, overhead_bytes=GIB)
    stub.config.with_name("on_error").write_text("deny-new-memory\n")
    damage(stub, what)
    found, silent = says(stub)
    assert found == [OUT_OF_MEMORY, OUT_OF_MEMORY, TOTAL, TOTAL], "what is shown is the driver's"
    assert silent == ""
    assert says(stub, XPU_LOG="1")[1].count(POLICY) == 1


@pytest.mark.parametrize("policy", ["allow\n", None, "\xff"])
@pytest.mark.parametrize("what", [CONFIGS[1], LEDGERS[0]])
def test_anything_else_lets_it_run(stub: Slice, what: str, policy: str | None) -> None:
    stub.grant(memory_bytes=3 * GIB)
    if policy is not None:
        stub.config.with_name("on_error").write_text(policy)
    damage(stub, what)
    (small, large, _, total), _ = says(stub)
    assert (small, large) == (0, 0)
    assert total == (TOTAL if what in CONFIGS else 3 * GIB), "without a ledger: for itself"
    said = says(stub, XPU_LOG="1")[1]
    assert said.count("\n") == 1 and POLICY not in said


def test_the_policy_means_nothing_to_a_sound_slice(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    stub.config.with_name("on_error").write_text("deny-new-memory\n")
    assert says(stub)[0][:2] == [0, 0]
    assert says(stub)[0][3] == 3 * GIB


def test_a_forked_child_is_denied_too(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    stub.config.with_name("on_error").write_text("deny-new-memory\n")
    damage(stub, "config")
    seen = stub.scenario("forked")
    assert (seen["first"], seen["over"], seen["fits"]) == (OUT_OF_MEMORY,) * 3
