# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.ascend_compat); the logic is in module_utils/_ascend_compat.py."""

from __future__ import annotations

DOCUMENTATION = """
name: ascend_compat
short_description: Does a CANN run on an Ascend driver
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Tells before a deployment whether a CANN runs on a host's Ascend driver, and whether torch-npu,
    vllm-ascend and Python fit it.
  - The driver's own list of CANN lines decides where it is given; a table of known pairs otherwise.
positional: _input
options:
  _input:
    description: The driver's version, as C(/usr/local/Ascend/driver/version.info) has it.
    type: str
    required: true
  cann:
    description: Version of CANN, such as V(8.1.RC1).
    type: str
    required: true
  compatible:
    description: The driver's C(compatible_version), from the same file.
    type: str
    default: ""
  torch_npu:
    description: Version of torch-npu in the image, such as V(2.5.1).
    type: str
    default: ""
  vllm_ascend:
    description: Version of vllm-ascend in the image, such as V(0.8.5rc1).
    type: str
    default: ""
  python:
    description: Version of Python in the image.
    type: str
    default: ""
"""

EXAMPLES = """
- name: Stop before a deployment that can't run
  ansible.builtin.assert:
    that: __compat.runs
    fail_msg: "{{ __compat.reason }}. Remedy: {{ __compat.remedy }}"
  vars:
    __compat: "{{ '25.0.rc1.1' | flexai.xpu.ascend_compat(cann='8.1.RC1') }}"
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
      description: V(listed) by the driver itself, V(known) by the table, or V(fail).
      type: str
    reason:
      description: Why, with the versions that decided.
      type: str
    remedy:
      description: What to do; empty where it runs.
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_compat
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError


def ascend_compat(driver: t.Any, **options: t.Any) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    known = _ascend_compat.Question._fields[1:]
    unknown = sorted(set(options) - set(known))
    if unknown or "cann" not in options:
        wrong = f"unknown {', '.join(unknown)}" if unknown else "cann is missing"
        raise AnsibleFilterError(f"ascend_compat: {wrong}; known are {', '.join(known)}")
    texts = {name: str(value) for name, value in options.items()}
    try:
        found = _ascend_compat.answer(_ascend_compat.Question(str(driver), **texts))
    except XpuError as error:
        raise AnsibleFilterError(f"ascend_compat: {error}") from error
    return {**found._asdict(), "runs": found.runs}


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"ascend_compat": ascend_compat}
