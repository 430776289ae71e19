# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_plan
short_description: Show the plan of all hosts, and stop where one can't go on
version_added: 0.1.0
description:
  - Runs on the controller, after M(flexai.xpu.node_probe) on every host. Fails with one message
    that names every host which is unreachable, failed its probe, or is blocked, with the remedy.
  - It is an action plugin; no module is executed and nothing is changed.
options:
  probe:
    description: Name of the variable in which the hosts' probes are registered.
    type: str
    default: preflight_probe
extends_documentation_fragment:
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Show the plan of all hosts, and stop where one can't go on
  flexai.xpu.site_plan:
  run_once: true
"""

RETURN = r"""
plan:
  description: One line per component that will change.
  returned: success
  type: list
  elements: str
"""
