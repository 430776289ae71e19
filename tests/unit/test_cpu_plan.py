# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU plans: the vendors' examples, the silent traps, and what the kernels would do with them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.cpu_plan import cpu_plan
from ansible_collections.flexai.xpu.plugins.module_utils import _cpu_plan
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from bench.cpu_plan import machine
from hypothesis import given
from hypothesis import strategies as st

KUNPENG = machine(nodes=4, cores=40)


def env(facts: dict[str, Any], **options: Any) -> dict[str, str]:
    plan: dict[str, str] = cpu_plan(facts, **options)["engines"][0]["env"]
    return plan


def interleaved(nodes: int, cores: int) -> dict[str, Any]:
    return machine(nodes, cores, number=lambda node, core, _: core * nodes + node)


@pytest.mark.parametrize(
    ("facts", "options", "threads", "affinity"),
    [
        (KUNPENG, {}, "160", "0-159"),
        (KUNPENG, {"reserve_per_node": 8}, "128", "0-31,40-71,80-111,120-151"),
        (KUNPENG, {"reserve_per_node": 10}, "120", "0-29,40-69,80-109,120-149"),
        (machine(2, 32, smt=2), {}, "64", "0-63"),
        (machine(4, 40, offline=(40, 41, 42, 43)), {}, "144", "0-35,44-115,120-155"),
        (machine(2, (24, 16)), {}, "32", "0-15,24-39"),
        (KUNPENG, {"max_threads": 100}, "100", "0-24,40-64,80-104,120-144"),
        (KUNPENG, {"allowed": "0-19,40-59,80-99,120-139"}, "80", "0-19,40-59,80-99,120-139"),
        (machine(2, 32, smt=2), {"reserved_cpus": "0"}, "64", "1-31,64,96-127"),
    ],
)  # fmt: skip
def test_known_machines(
    facts: dict[str, Any], options: dict[str, Any], threads: str, affinity: str
) -> None:
    found = env(facts, **options)
    assert found == {"OMP_NUM_THREADS": threads, "CUSTOM_CPU_AFFINITY": affinity}


@pytest.mark.parametrize(
    ("facts", "options", "reason"),
    [
        (interleaved(4, 10), {}, "CPU numbers don't follow the NUMA nodes"),
        (machine(2, 32, smt=2), {"smt": True, "max_stranded": 0.1}, "CPU numbers don't follow"),
        ({**machine(2, 8), "memory_nodes": "0-3"}, {}, "NUMA nodes 2-3 have memory"),
        (KUNPENG, {"nodes": "0,1"}, "NUMA nodes 2-3 have memory but give no CPU"),
        (KUNPENG, {"hidden_sizes": [5120]}, None),
        (machine(8, 4), {"hidden_sizes": [5120]}, "hidden size 5120 does not divide"),
        (KUNPENG, {"reserve_per_node": 40}, "none is left"),
        (KUNPENG, {"max_threads": 3}, "none is left"),
        (KUNPENG, {"nodes": "7"}, "NUMA node 7 has no usable CPU"),
        (KUNPENG, {"allowed": "900"}, "no CPU is usable"),
        (KUNPENG, {"allowed": "0-"}, "'0-' is not understood"),
        (KUNPENG, {"engine": "fast"}, "engine is 'fast'"),
        (KUNPENG, {"reserve": 2}, "unknown reserve"),
        ({}, {}, "the NUMA facts hold no CPU"),
        ([], {}, "the facts are a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_bound_is_refused_with_the_reason(
    facts: Any, options: dict[str, Any], reason: str | None
) -> None:
    if reason is None:
        assert cpu_plan(facts, **options)["engines"]
        return
    with pytest.raises(AnsibleFilterError) as caught:
        cpu_plan(facts, **options)
    assert reason in str(caught.value)


def test_what_stays_idle_is_said() -> None:
    plan = cpu_plan(machine(2, (24, 16)))
    assert plan["warnings"] == [
        "8 of 40 CPUs stay idle, for every NUMA node must give as many"
    ]  # fmt: skip
    assert plan["left"] == "16-23"


def test_engines_split_every_node() -> None:
    plan = cpu_plan(KUNPENG, engines=2)
    lists = [engine["env"]["CUSTOM_CPU_AFFINITY"] for engine in plan["engines"]]
    assert lists == ["0-19,40-59,80-99,120-139", "20-39,60-79,100-119,140-159"]


def test_vllm_takes_one_rank_a_node_whatever_the_numbering() -> None:
    (engine,) = cpu_plan(interleaved(2, 3), engine="vllm")["engines"]
    assert engine == {
        "env": {"VLLM_CPU_OMP_THREADS_BIND": "0,2,4|1,3,5"}, "tensor_parallel_size": 2,
    }  # fmt: skip


def test_a_machine_without_numa_has_one_node() -> None:
    facts = {"cpus": [{"cpu": n, "node": "-", "socket": 0, "core": n} for n in range(4)]}
    assert env(facts)["CUSTOM_CPU_AFFINITY"] == "0-3"


@given(st.sets(st.integers(0, 300)))
def test_lists_are_read_as_they_were_written(cpus: set[int]) -> None:
    assert _cpu_plan.parse_list(_cpu_plan.format_list(cpus)) == sorted(cpus)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-6:2,9", [0, 2, 4, 6, 9]), (" 3 ,1", [1, 3]), ("", []), ("5-5", [5])]
)
def test_the_grammar(text: str, cpus: list[int]) -> None:
    assert _cpu_plan.parse_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "0-4:0", "1--2", "-1", "0-99999999999"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(XpuError):
        _cpu_plan.parse_list(text)


def as_the_kernels_do(environment: dict[str, str], node_of: dict[int, int], nodes: int) -> None:
    """sysHAX's own steps (reference/syshax.md, E1 to E4): each thread on its node's CPU."""
    threads = int(environment["OMP_NUM_THREADS"])
    cpus = sorted(_cpu_plan.parse_list(environment["CUSTOM_CPU_AFFINITY"]))
    assert threads == len(cpus) and threads % nodes == 0
    for thread in range(threads):
        assert node_of[cpus[thread]] == thread // (threads // nodes)


machines = st.builds(
    machine,
    nodes=st.integers(1, 5),
    cores=st.integers(1, 12),
    smt=st.integers(1, 2),
    offline=st.sets(st.integers(0, 60), max_size=12),
    number=st.sampled_from(
        [None, lambda node, core, sibling: (core * 5 + node) * 2 + sibling,
         lambda node, core, sibling: 200 * node + core * 2 + sibling]
    ),
)  # fmt: skip


@given(machines, st.booleans(), st.integers(0, 3), st.integers(1, 3), st.sets(st.integers(0, 40)))
def test_every_plan_is_one_the_kernels_run_right(
    facts: dict[str, Any], smt: bool, reserve: int, engines: int, reserved: set[int]
) -> None:
    listed = _cpu_plan.format_list(reserved)
    try:
        plan = cpu_plan(
            facts, smt=smt, reserve_per_node=reserve, engines=engines, reserved_cpus=listed,
            max_stranded=1.0,
        )  # fmt: skip
    except AnsibleFilterError:
        return
    usable = {row["cpu"]: row for row in facts["cpus"] if row["online"] == "yes"}
    node_of = {cpu: row["node"] for cpu, row in usable.items()}
    nodes = len({row["node"] for row in facts["cpus"]})
    seen: set[int] = set()
    for engine in plan["engines"]:
        as_the_kernels_do(engine["env"], node_of, nodes)
        cpus = set(_cpu_plan.parse_list(engine["env"]["CUSTOM_CPU_AFFINITY"]))
        assert not cpus & (seen | reserved)
        seen |= cpus
        if not smt:
            cores = [(usable[cpu]["node"], usable[cpu]["core"]) for cpu in cpus]
            assert len(set(cores)) == len(cores)
    assert set(_cpu_plan.parse_list(plan["left"])) == set(usable) - seen
    assert plan == cpu_plan(
        facts, smt=smt, reserve_per_node=reserve, engines=engines, reserved_cpus=listed,
        max_stranded=1.0,
    )  # fmt: skip
