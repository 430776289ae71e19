# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.cpu_plan); the logic is in module_utils/_cpu_plan.py."""

from __future__ import annotations

DOCUMENTATION = """
name: cpu_plan
short_description: Bind CPU engines to cores, by NUMA node
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Turns the NUMA facts of a host into the environment that binds sysHAX's or vLLM's CPU engine,
    so that every NUMA node gives as many CPUs and no thread works on another node's memory.
  - Fails with the reason where the machine allows no such binding, because a wrong one runs
    without an error, slowly.
positional: _input
options:
  _input:
    description:
      - What C(lscpu -J -a -e=CPU,NODE,SOCKET,CORE,ONLINE) prints, with C(memory_nodes) added from
        C(/sys/devices/system/node/has_memory) where nodes without CPUs exist.
    type: dict
    required: true
  engine:
    description:
      - V(fused) for sysHAX's kernels, V(vllm) for vLLM's own CPU backend with one rank a node.
    type: str
    choices: [fused, vllm]
    default: fused
  allowed:
    description:
      - CPUs that the cgroup allows (C(cpuset.cpus.effective)), as a list such as V(0-31,64).
    type: str
  reserved_cpus:
    description: CPUs that no engine gets, as a list.
    type: str
    default: ""
  reserve_per_node:
    description: CPUs of every node left to the conductor, the GPU engine and interrupts.
    type: int
    default: 0
  smt:
    description: Whether both hardware threads of a core are used.
    type: bool
    default: false
  nodes:
    description: NUMA nodes to use, as a list; all that have CPUs when it is empty.
    type: str
    default: ""
  max_threads:
    description: Upper bound of one engine's threads.
    type: int
  max_stranded:
    description:
      - Share of CPUs that may stay idle where CPU numbers don't follow the nodes.
      - A larger share is refused.
    type: float
    default: 0.5
  engines:
    description: CPU engines on this host; each gets as many CPUs of every node.
    type: int
    default: 1
  hidden_sizes:
    description: The model's dimensions, checked against the number of nodes.
    type: list
    elements: int
    default: []
"""

EXAMPLES = """
- name: Bind the CPU engine
  ansible.builtin.set_fact:
    syshax_cpu: "{{ lscpu.stdout | from_json | flexai.xpu.cpu_plan(reserve_per_node=8) }}"
# On the machine of document 002 without a reserve, syshax_cpu.engines[0].env is
#   OMP_NUM_THREADS: "160"
#   CUSTOM_CPU_AFFINITY: 0-159
"""

RETURN = """
_value:
  description: The plan.
  type: dict
  contains:
    engines:
      description: One entry an engine, with C(env), and C(tensor_parallel_size) for V(vllm).
      type: list
      elements: dict
    memory_nodes:
      description: NUMA nodes whose memory the engines use, as a list.
      type: str
    left:
      description: CPUs that no engine has, for the conductor, as a list.
      type: str
    warnings:
      description: What is not as good as it could be, in words.
      type: list
      elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.module_utils import _cpu_plan
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError

# Options of the filter that are CPU lists in words.
_LISTS: dict[str, t.Callable[[t.Iterable[int]], t.Any]] = {
    "reserved_cpus": frozenset,
    "nodes": tuple,
}


def cpu_plan(facts: t.Any, allowed: str | None = None, **options: t.Any) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    unknown = sorted(set(options) - set(_cpu_plan.Options._fields))
    if unknown:
        known = ", ".join(("allowed", *_cpu_plan.Options._fields))
        raise AnsibleFilterError(f"cpu_plan: unknown {', '.join(unknown)}; known are {known}")
    if not isinstance(facts, dict):
        raise AnsibleFilterError(f"cpu_plan: the facts are a {type(facts).__name__}, not a mapping")
    try:
        for name, kind in _LISTS.items():
            if name in options:
                options[name] = kind(_cpu_plan.parse_list(str(options[name])))
        if "hidden_sizes" in options:
            options["hidden_sizes"] = tuple(options["hidden_sizes"])
        read = _cpu_plan.read_lscpu(facts, allowed)
        return _cpu_plan.plan(read, _cpu_plan.Options(**options))
    except XpuError as error:
        raise AnsibleFilterError(f"cpu_plan: {error}") from error


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cpu_plan": cpu_plan}
