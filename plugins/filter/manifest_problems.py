# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.manifest_problems); the logic is in module_utils/_pod_manifests.py."""

from __future__ import annotations

DOCUMENTATION = """
name: manifest_problems
short_description: What is wrong with manifests of model servers that were written by hand
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Finds what the API server takes in silence, or refuses in words that don't lead to the mistake.
    Limits beside C(resources), requests of slices without limits, no scheduler or runtime class, a
    model that is larger than its slice, placeholders in braces, which YAML reads as mappings, no
    shared memory, fixed delays in place of a startup probe, links to libraries of one driver's
    version, tensor parallelism over time slices, and configurations of NVIDIA's device plugin that
    it would drop.
  - Nothing is changed and no cluster is asked.
positional: _input
options:
  _input:
    description: A manifest's text, which may hold several documents, or a list of objects.
    type: raw
    required: true
  calls:
    description: URLs that clients are to use. A port that no Service of the input has is a problem.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: Stop before a manifest with mistakes is applied
  ansible.builtin.assert:
    that: problems | length == 0
    fail_msg: "{{ problems | join('\\n') }}"
  vars:
    problems: "{{ lookup('file', 'deployment.yaml') | flexai.xpu.manifest_problems }}"
"""

RETURN = """
_value:
  description: One line a problem. Where it is, what stands there, what may stand there, what to do.
  type: list
  elements: str
"""

import typing as t

import yaml
from ansible.errors import AnsibleFilterError

from ..module_utils._pod_manifests import check


def _load(text: str) -> t.Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def manifest_problems(
    manifests: str | t.Sequence[t.Any], *, calls: t.Sequence[str] = ()
) -> list[str]:
    objects: t.Sequence[t.Any]
    if isinstance(manifests, str):
        try:
            objects = list(yaml.safe_load_all(manifests))
        except yaml.YAMLError as error:
            raise AnsibleFilterError(f"manifest_problems: this is no YAML: {error}") from error
    else:
        objects = manifests
    return [str(problem) for problem in check(objects, _load, calls)]


class FilterModule:
    """Manifests of model servers."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"manifest_problems": manifest_problems}
