# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Which CPUs a CPU engine is bound to: NUMA facts in, environment variables or a refusal out.

The kernels of sysHAX's engine pin thread t to the t-th CPU of the *sorted* list and take it to
belong to NUMA node t / (threads / nodes), counting every configured node, and check nothing of it.
So a list is right only if every node gives the same number of CPUs and the sorted list is grouped
by node, in the order of the nodes; everything else runs, on remote memory.
"""

from __future__ import annotations

import re
import typing as t

from ._errors import XpuError


class Cpu(t.NamedTuple):
    """One row of lscpu."""

    cpu: int
    node: int
    socket: int
    core: int


ByNode = t.Dict[int, t.List[int]]
_RANGE = re.compile(r"^(\d+)(?:-(\d+)(?::(\d+))?)?$")
# A list in an inventory may hold a typing error; a machine has fewer CPUs than this.
_MAX_CPU = 65536


class Options(t.NamedTuple):
    """How much of the machine engines may have. Empty ``nodes``: all that have CPUs."""

    engine: str = "fused"
    smt: bool = False
    nodes: tuple[int, ...] = ()
    reserve_per_node: int = 0
    reserved_cpus: frozenset[int] = frozenset()
    max_threads: int | None = None
    max_stranded: float = 0.5
    engines: int = 1
    hidden_sizes: tuple[int, ...] = ()


class Facts(t.NamedTuple):
    """The machine: usable CPUs, and every configured node that has memory."""

    cpus: tuple[Cpu, ...]
    memory_nodes: frozenset[int]


def parse_list(text: str) -> list[int]:
    """``N``, ``A-B`` and ``A-B:STEP``, joined by commas; as sysHAX and Linux write lists."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RANGE.match(part)
        if match is None:
            raise XpuError(
                f"CPU list {text!r}: {part!r} is not understood.", "Write N, A-B or A-B:STEP."
            )
        first = int(match.group(1))
        last = int(match.group(2) or first)
        step = int(match.group(3) or 1)
        if last < first or last >= _MAX_CPU or step == 0:
            raise XpuError(
                f"CPU list {text!r}: {part!r} is no range.", "Write A-B with A not above B."
            )
        found.update(range(first, last + 1, step))
    return sorted(found)


def format_list(cpus: t.Iterable[int]) -> str:
    """The shortest ``A-B`` runs, ascending."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read_lscpu(document: t.Mapping[str, t.Any], allowed: str | None = None) -> Facts:
    """Facts from ``lscpu -J -a -e=CPU,NODE,SOCKET,CORE,ONLINE``, and what a cpuset allows.

    ``memory_nodes`` in *document* (``/sys/devices/system/node/has_memory``) tells nodes without
    CPUs; where it is missing, the nodes with CPUs are all there are known to be.
    """
    rows = document.get("cpus")
    if not isinstance(rows, list) or not rows:
        raise XpuError(
            "the NUMA facts hold no CPU.",
            "Give the output of lscpu -J -a -e=CPU,NODE,SOCKET,CORE,ONLINE.",
        )
    limit = None if allowed is None else set(parse_list(allowed))
    cpus, nodes = [], set()
    for row in rows:
        cpu = Cpu(*(_number(row, name) for name in ("cpu", "node", "socket", "core")))
        nodes.add(cpu.node)
        online = str(row.get("online", "yes")).lower() in ("yes", "y", "true", "1")
        if online and (limit is None or cpu.cpu in limit):
            cpus.append(cpu)
    memory = document.get("memory_nodes")
    return Facts(tuple(sorted(cpus)), frozenset(nodes if memory is None else parse_list(memory)))


def _number(row: t.Mapping[str, t.Any], name: str) -> int:
    value = row.get(name)
    if value in (None, "", "-", -1, "-1"):
        # A machine without NUMA has one node, and an offline CPU no place.
        return 0
    try:
        return int(value)
    except (TypeError, ValueError):
        raise XpuError(
            f"lscpu's {name} of CPU {row.get('cpu')!r} is {value!r}.",
            "Give lscpu -J's output as it is.",
        ) from None


def plan(facts: Facts, options: Options) -> dict[str, t.Any]:
    """Environment of each engine, and what is left to others. Raises with the reason for none."""
    _check(options)
    free = _free(facts, options)
    by_node = {node: _pick(cpus, options) for node, cpus in free.items()}
    target = sorted(options.nodes or by_node)
    for node in target:
        if not by_node.get(node):
            raise XpuError(
                f"NUMA node {node} has no usable CPU.", "Leave it out of nodes, or free CPUs there."
            )
    if not target:
        raise XpuError("no CPU is usable.", "Look at the cpuset, reserved_cpus and offline CPUs.")
    count = _each(by_node, target, options)
    picked = {node: by_node[node][: count * options.engines] for node in target}
    if options.engine == "fused":
        _check_nodes(facts, target, options)
        picked, count = _group(free, picked, target, count, options)
    engines = [
        _engine({node: cpus[i * count : (i + 1) * count] for node, cpus in picked.items()}, options)
        for i in range(options.engines)
    ]
    used = {cpu for cpus in picked.values() for cpu in cpus}
    return {
        "engines": engines,
        "memory_nodes": format_list(target),
        "left": format_list(cpu.cpu for cpu in facts.cpus if cpu.cpu not in used),
        "warnings": _warnings(by_node, target, used, options),
    }


def _check(options: Options) -> None:
    if options.engine not in ("fused", "vllm"):
        raise XpuError(f"engine is {options.engine!r}.", "Set it to fused or vllm.")
    if options.engines < 1:
        raise XpuError(f"engines is {options.engines}.", "Plan at least one.")
    if options.reserve_per_node < 0:
        raise XpuError(f"reserve_per_node is {options.reserve_per_node}.", "Set it to 0 or more.")


def _free(facts: Facts, options: Options) -> dict[int, list[Cpu]]:
    """CPUs that engines may have, by node, ascending."""
    free: dict[int, list[Cpu]] = {}
    for cpu in sorted(facts.cpus):
        if cpu.cpu not in options.reserved_cpus:
            free.setdefault(cpu.node, []).append(cpu)
    return free


def _pick(cpus: t.Iterable[Cpu], options: Options, above: int = -1) -> list[int]:
    """CPUs numbered above *above*; without SMT the lowest of each core, as siblings share what the
    kernels saturate. A reserved CPU leaves its core to its sibling."""
    picked, cores = [], set()
    for cpu in cpus:
        core = (cpu.socket, cpu.core)
        if cpu.cpu > above and (options.smt or core not in cores):
            picked.append(cpu.cpu)
            cores.add(core)
    return picked


def _each(by_node: ByNode, target: t.Sequence[int], options: Options) -> int:
    """CPUs of one engine on every node: the smallest node, less the reserve, decides."""
    smallest = min(target, key=lambda node: len(by_node[node]))
    count = (len(by_node[smallest]) - options.reserve_per_node) // options.engines
    if options.max_threads is not None:
        count = min(count, options.max_threads // len(target))
    if count < 1:
        raise XpuError(
            f"NUMA node {smallest} has {len(by_node[smallest])} usable CPUs: with "
            f"{options.reserve_per_node} reserved and {options.engines} engines on {len(target)} "
            f"nodes, none is left for one of them.",
            "Reserve less, plan fewer engines or raise max_threads.",
        )
    return count


def _check_nodes(facts: Facts, target: t.Sequence[int], options: Options) -> None:
    """What the kernels take for granted of the nodes themselves."""
    configured = sorted(facts.memory_nodes | set(target))
    if configured != list(range(len(configured))):
        raise XpuError(
            f"NUMA nodes are numbered {format_list(configured)}; the fused kernels count from 0 "
            "without gaps.",
            "Use engine vllm, or close the gap in firmware.",
        )
    missing = sorted(set(configured) - set(target))
    if missing:
        raise XpuError(
            f"NUMA nodes {format_list(missing)} have memory but give no CPU; the fused kernels "
            "would place weights there and give the threads of other nodes to them.",
            "Use engine vllm, which takes one rank a node.",
        )
    for size in options.hidden_sizes:
        if size % (256 * len(target)):
            raise XpuError(
                f"hidden size {size} does not divide into blocks of 256 on {len(target)} NUMA "
                "nodes.",
                "Use engine vllm, or a machine setting with fewer nodes.",
            )


def _group(
    free: dict[int, list[Cpu]],
    picked: ByNode,
    target: t.Sequence[int],
    count: int,
    options: Options,
) -> tuple[ByNode, int]:
    """A choice whose sorted list is grouped by node for every engine, with the most CPUs."""
    if _grouped(picked, target):
        return picked, count
    best: ByNode | None = None
    low, high = 1, count
    while low <= high:
        # What works for k CPUs a node works for fewer, so the search may halve.
        middle = (low + high) // 2
        choice = _ascending(free, target, middle * options.engines, options)
        if choice is None:
            high = middle - 1
        else:
            best, count, low = choice, middle, middle + 1
    total = sum(len(_pick(free[node], options)) for node in target)
    used = sum(map(len, best.values())) if best else 0
    if best is None or 1 - used / total > options.max_stranded:
        raise XpuError(
            f"CPU numbers don't follow the NUMA nodes: a list grouped by node would use {used} of "
            f"{total} CPUs.",
            "Set smt to off, renumber CPUs in firmware, use engine vllm, or raise max_stranded.",
        )
    return best, count


def _ascending(
    free: dict[int, list[Cpu]], target: t.Sequence[int], count: int, options: Options
) -> ByNode | None:
    """*count* CPUs a node, every one above those of the node before; the lowest that fit."""
    choice: ByNode = {}
    above = -1
    for node in target:
        fitting = _pick(free[node], options, above)[:count]
        if len(fitting) < count:
            return None
        choice[node], above = fitting, fitting[-1]
    return choice


def _grouped(picked: ByNode, target: t.Sequence[int]) -> bool:
    ordered = [picked[node] for node in target]
    return all(a[-1] < b[0] for a, b in zip(ordered, ordered[1:]))


def _engine(cpus: ByNode, options: Options) -> dict[str, t.Any]:
    """One engine's environment, judged again by what its strings say."""
    everything = [cpu for node in sorted(cpus) for cpu in cpus[node]]
    threads, affinity = str(len(everything)), format_list(everything)
    owner = {cpu: node for node, some in cpus.items() for cpu in some}
    bound = parse_list(affinity)
    if len(bound) != int(threads) or len({len(some) for some in cpus.values()}) != 1:
        raise AssertionError(f"{affinity} breaks the rules it was made by")
    if options.engine == "fused":
        if [owner[cpu] for cpu in bound] != [owner[cpu] for cpu in everything]:
            raise AssertionError(f"{affinity} is not grouped by node")
        return {"env": {"OMP_NUM_THREADS": threads, "CUSTOM_CPU_AFFINITY": affinity}}
    ranks = "|".join(format_list(cpus[node]) for node in sorted(cpus))
    return {"env": {"VLLM_CPU_OMP_THREADS_BIND": ranks}, "tensor_parallel_size": len(cpus)}


def _warnings(
    by_node: ByNode, target: t.Sequence[int], used: set[int], options: Options
) -> list[str]:
    able = sum(len(by_node[node]) for node in target)
    stranded = able - len(used) - options.reserve_per_node * len(target)
    if stranded <= 0 or options.max_threads is not None:
        return []
    return [f"{stranded} of {able} CPUs stay idle, for every NUMA node must give as many"]
