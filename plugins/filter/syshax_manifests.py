# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.syshax_manifests); the logic is in module_utils/_syshax_kubernetes.py."""

from __future__ import annotations

DOCUMENTATION = """
name: syshax_manifests
short_description: sysHAX's engines and conductor as objects of Kubernetes
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Turns the options of M(flexai.xpu.syshax) into Deployments and Services.
  - The CPU's engine asks for whole cores and is limited to them, so the kubelet's static CPU
    manager (C(cpuManagerPolicy=static)) gives it cores of its own, where every container of the
    pod does so.
  - The conductor has a pod of its own, where O(conductor_image) is given. It needs no device,
    reaches the engines by their Services, and runs as nobody on a file system that it can't write.
positional: _input
options:
  _input:
    description: Options of M(flexai.xpu.syshax); those that a host alone has are left aside.
    type: dict
    required: true
  name:
    description: Name of the objects.
    type: str
    default: syshax
  namespace:
    description: Their namespace.
    type: str
    default: default
  layout:
    description: One pod with both engines, or two pods that share the memory of a node.
    type: str
    choices: [one-pod, two-pods]
    default: one-pod
  node:
    description: The node of both pods, with V(two-pods).
    type: str
    default: ""
  gpu_resources:
    description: The accelerator, as a pod asks for it.
    type: dict
    default: {nvidia.com/gpu: "1"}
  cpus:
    description: Cores of the CPU's engine.
    type: int
    required: true
  gpu_cpus:
    description:
      - Cores that the accelerator's engine asks for and is limited to. The static CPU manager gives
        cores to a container that asks for whole ones.
    type: str
    default: "2"
  cpu_memory:
    description: Memory of the CPU's engine, shared memory included.
    type: str
    default: 128Gi
  gpu_memory:
    description: Memory of the accelerator's engine, shared memory included.
    type: str
    default: 128Gi
  shared_memory:
    description: Size of C(/dev/shm) in one pod.
    type: str
    default: 64Gi
  conductor_image:
    description:
      - Image of the conductor, as the artefact manifest has it (C(syshax-conductor)), or another
        with the program C(syshax). Its port is C(port) of the options (8010), its settings
        C(settings).
      - Empty renders the engines alone.
    type: str
    default: ""
  conductor_resources:
    description: What the conductor's container asks for and is limited to.
    type: dict
    default: {cpu: "1", memory: 512Mi}
"""

EXAMPLES = """
- name: Both engines in one pod, and the conductor before them
  ansible.builtin.copy:
    content: "{{ options | flexai.xpu.syshax_manifests(**cluster) | to_nice_yaml }}"
    dest: syshax.yml
    mode: "0644"
  vars:
    cluster: {cpus: 32, conductor_image: 'docker.io/library/syshax-conductor:v1.0'}
    options:
      model: /home/models/ds-32b
      gpu: {image: 'vllm/vllm-openai:v0.27.0'}
      cpu: {image: 'vllm/vllm-openai-cpu:v0.27.0'}
"""

RETURN = """
_value:
  description: The objects, in the order in which to apply them.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._errors import XpuError
from ..module_utils._syshax_kubernetes import Cluster, Conductor, render
from ..module_utils._syshax_options import argument_spec, settings_of


def syshax_manifests(
    options: t.Mapping[str, t.Any],
    *,
    cpus: int,
    name: str = "syshax",
    namespace: str = "default",
    layout: str = "one-pod",
    node: str = "",
    gpu_resources: t.Mapping[str, str] | None = None,
    gpu_cpus: str = "2",
    cpu_memory: str = "128Gi",
    gpu_memory: str = "128Gi",
    shared_memory: str = "64Gi",
    conductor_image: str = "",
    conductor_resources: t.Mapping[str, str] | None = None,
) -> list[dict[str, t.Any]]:
    known = argument_spec()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise AnsibleFilterError(
            f"syshax_manifests: {', '.join(unknown)} unknown; options are those of module "
            "flexai.xpu.syshax."
        )
    defaults = {key: spec.get("default") for key, spec in known.items()}
    resources = {"nvidia.com/gpu": "1"} if gpu_resources is None else gpu_resources
    cluster = Cluster(
        name=name,
        namespace=namespace,
        layout=layout,
        gpu_resources={key: str(value) for key, value in resources.items()},
        cpus=cpus,
        gpu_cpus=str(gpu_cpus),
        cpu_memory=cpu_memory,
        gpu_memory=gpu_memory,
        shared_memory=shared_memory,
        node=node,
    )
    params = {**defaults, **options}
    own = {"cpu": "1", "memory": "512Mi"} if conductor_resources is None else conductor_resources
    conductor = Conductor(
        image=conductor_image,
        port=int(params["port"]),
        settings=params["settings"] or {},
        resources={key: str(value) for key, value in own.items()},
    )
    try:
        return render(settings_of(params, "containerd"), cluster, conductor)
    except XpuError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters of sysHAX."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"syshax_manifests": syshax_manifests}
