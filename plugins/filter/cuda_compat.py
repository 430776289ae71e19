# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.cuda_compat); the logic is in module_utils/_cuda_compat.py."""

from __future__ import annotations

DOCUMENTATION = """
name: cuda_compat
short_description: Does an image of some CUDA run on a driver
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Tells before a deployment whether an image built with some CUDA toolkit runs on a host's driver,
    by which of NVIDIA's ways, and what to do where it does not.
positional: _input
options:
  _input:
    description: The driver's version, as C(nvidia-smi --query-gpu=driver_version) prints it.
    type: str
    required: true
  cuda:
    description: The image's CUDA toolkit, such as V(12.4) or V(12.4.1); its C(CUDA_VERSION).
    type: str
    required: true
  gpu_class:
    description: What the cards are; only V(datacenter) accepts cuda-compat.
    type: str
    choices: [datacenter, workstation, consumer]
    default: consumer
  compat:
    description: Whether the image ships cuda-compat (C(/usr/local/cuda/compat)).
    type: bool
    default: false
  toolkit:
    description:
      - Version of NVIDIA's container toolkit on the host.
      - Before 1.17.4 it puts an image's cuda-compat in place of the host's driver.
    type: str
    default: ""
"""

EXAMPLES = """
- name: Stop before a deployment that can't run
  ansible.builtin.assert:
    that: __compat.runs
    fail_msg: "{{ __compat.reason }}. Remedy: {{ __compat.remedy }}"
  vars:
    __compat: "{{ '535.183.06' | flexai.xpu.cuda_compat(cuda='13.0') }}"
"""

RETURN = """
_value:
  description: The answer.
  type: dict
  contains:
    runs:
      description: Whether it runs.
      type: bool
    verdict:
      description: V(full), V(minor), V(forward) or V(fail).
      type: str
    reason:
      description: Why, with the versions that decided.
      type: str
    remedy:
      description: What to do; empty where it runs.
      type: str
    warnings:
      description: What is not as good as it could be.
      type: list
      elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.module_utils import _cuda_compat
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError


def cuda_compat(driver: t.Any, **options: t.Any) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    known = _cuda_compat.Question._fields[1:]
    unknown = sorted(set(options) - set(known))
    if unknown or "cuda" not in options:
        wrong = f"unknown {', '.join(unknown)}" if unknown else "cuda is missing"
        raise AnsibleFilterError(f"cuda_compat: {wrong}; known are {', '.join(known)}")
    texts = {name: str(value) for name, value in options.items() if name != "compat"}
    try:
        question = _cuda_compat.Question(
            str(driver), **texts, compat=bool(options.get("compat", False))
        )
        found = _cuda_compat.answer(question)
    except XpuError as error:
        raise AnsibleFilterError(f"cuda_compat: {error}") from error
    return {**found._asdict(), "warnings": list(found.warnings), "runs": found.runs}


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cuda_compat": cuda_compat}
