# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.vllm_service); the logic is in module_utils/_vllm_service.py."""

from __future__ import annotations

DOCUMENTATION = """
name: vllm_service
short_description: A model server of one pod as Deployment and Service, or what is wrong with it
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Turns the variables of role P(flexai.xpu.vllm_service#role), without their prefix, into objects
    of Kubernetes.
  - Checks everything before, and gives all problems at once, each with where it is, what stands
    there, what may stand there and what to do.
  - What is not given is derived from the slice, C(--gpu-memory-utilization) and C(--max-model-len)
    among them.
positional: _input
options:
  _input:
    description: Variables of the role without C(vllm_service_).
    type: dict
    required: true
  config:
    description: The model's C(config.json); without it the model is looked up by its name.
    type: dict
    default: {}
  drivers:
    description: Node and the version of its driver, to be compared with the CUDA in the image.
    type: dict
    default: {}
  toolkits:
    description: Node and the version of NVIDIA's container toolkit there.
    type: dict
    default: {}
"""

EXAMPLES = """
- name: Look at the objects
  ansible.builtin.debug:
    msg: "{{ settings | flexai.xpu.vllm_service }}"
  vars:
    settings:
      name: qwen
      namespace: inference
      model: /data/models/Qwen2.5-0.5B-Instruct
      memory_gib: 3
      cores: 20
"""

RETURN = """
_value:
  description: >-
    C(problems) and C(warnings), texts; C(objects) in the order in which to apply them, none where
    there are problems; C(max_model_len) and C(memory_utilization), 0 where the engine decides;
    C(need), the formula of the memory, empty where it isn't known; C(served_name).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._vllm_service import Settings, Site, plan

_KINDS = {"int": int, "float": float, "str": str}


def _settings(options: t.Mapping[str, t.Any]) -> Settings:
    unknown = sorted(set(options) - set(Settings._fields))
    if unknown:
        raise AnsibleFilterError(
            f"vllm_service: {', '.join(unknown)} unknown; known are {', '.join(Settings._fields)}."
        )
    kinds = Settings.__annotations__
    made = {}
    for key, value in options.items():
        kind = getattr(kinds[key], "__forward_arg__", kinds[key])
        try:
            made[key] = _KINDS[kind](value) if kind in _KINDS else value
        except (TypeError, ValueError) as error:
            raise AnsibleFilterError(
                f"vllm_service: {key} is {value!r}, which is no {kind}."
            ) from error
    return Settings(**{"name": "", "namespace": "", "model": "", **made})


def vllm_service(
    options: t.Mapping[str, t.Any],
    *,
    config: t.Mapping[str, t.Any] | None = None,
    drivers: t.Mapping[str, str] | None = None,
    toolkits: t.Mapping[str, str] | None = None,
) -> dict[str, t.Any]:
    found = plan(_settings(options), Site(config or {}, drivers or {}, toolkits or {}))
    return {
        "problems": [str(problem) for problem in found.problems],
        "warnings": found.warnings,
        "objects": found.objects,
        "max_model_len": found.launch.max_model_len or 0,
        "memory_utilization": found.launch.gpu_memory_utilization or 0,
        "need": found.need.formula if found.need else "",
        "served_name": found.launch.served_name,
    }


class FilterModule:
    """The model server of one pod."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"vllm_service": vllm_service}
