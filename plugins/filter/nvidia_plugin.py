# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.nvidia_plugin); the logic is in module_utils/_nvidia_plugin.py."""

from __future__ import annotations

DOCUMENTATION = """
name: nvidia_plugin
short_description: Values for the chart of NVIDIA's device plugin from checked configurations
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Reads configurations (v1) of NVIDIA's device plugin strictly. What the plugin itself would drop,
    mend or refuse to start with is one error that names key, value and remedy.
  - Gives the values for NVIDIA's chart, and what each node shall show afterwards.
positional: _input
options:
  _input:
    description: Name → configuration in the plugin's own format v1.
    type: dict
    required: true
  default:
    description: Configuration of the nodes that have none of their own.
    type: str
    default: default
  device_list_strategy:
    description: How a container is told its cards.
    type: str
    choices: [envvar, volume-mounts, cdi-annotations, cdi-cri]
    default: volume-mounts
  nodes:
    description: Names of the nodes.
    type: list
    elements: str
    required: true
  node_configs:
    description: Node → configuration, where it is not the default.
    type: dict
    default: {}
  runtime_class:
    description: RuntimeClass of the plugin's own pods; empty takes the runtime's default.
    type: str
    default: ""
"""

EXAMPLES = """
- name: Ten shares of each card, by time slices
  ansible.builtin.debug:
    msg: "{{ configs | flexai.xpu.nvidia_plugin(nodes=['gpu1']) }}"
  vars:
    configs:
      default:
        version: v1
        sharing:
          timeSlicing:
            resources:
              - name: nvidia.com/gpu
                replicas: 10
"""

RETURN = """
_value:
  description: What follows from the configurations.
  type: dict
  contains:
    values:
      description: Values for NVIDIA's chart.
      type: dict
    offers:
      description: Node → resource that it shall show, and the number that it comes in multiples of.
      type: dict
    mps:
      description: Whether a configuration shares by MPS.
      type: bool
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils import _nvidia_plugin as plugin
from ..module_utils._errors import XpuError
from ..plugin_utils._controller import plain


def nvidia_plugin(
    configs: t.Any,
    nodes: t.Sequence[str],
    default: str = "default",
    device_list_strategy: str = "volume-mounts",
    node_configs: t.Mapping[str, str] | None = None,
    runtime_class: str = "",
) -> dict[str, t.Any]:
    found, own = plain(configs), plain(node_configs or {})
    try:
        plugin.check_nodes(nodes, own)
        plugin.check(found, default, device_list_strategy, own)
    except XpuError as error:
        raise AnsibleFilterError(str(error)) from error
    offers = {node: plugin.offer(found[own.get(node, default)])._asdict() for node in nodes}
    return {
        "values": plugin.chart_values(found, default, device_list_strategy, nodes, runtime_class),
        "offers": offers,
        "mps": plugin.uses_mps(found),
    }


class FilterModule:
    def filters(self) -> dict[str, t.Any]:
        return {"nvidia_plugin": nvidia_plugin}
