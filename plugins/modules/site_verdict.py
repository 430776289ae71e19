# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_verdict
short_description: Put the hosts' verdicts together, show them, write them, hand them on
version_added: 0.1.0
description:
  - Runs on the controller after M(flexai.xpu.node_verdict) on every host. Prints the verdict as a
    table, writes it as JSON where O(file) says, and passes it on as the run's statistics
    (C(flexai_verdict), C(flexai_ready)).
  - A host without a verdict is in it all the same, as one that was not reached or failed.
  - Fails at the end when the site is not ready, so that whatever started the run gets to know.
  - It is an action plugin; no module is executed and nothing is changed but the file.
options:
  site:
    description: Name of the site.
    type: str
    default: default
  file:
    description: Where the verdict goes on the controller; empty writes none.
    type: path
    default: ""
  hosts:
    description: The hosts that the verdict is about.
    type: list
    elements: str
    required: true
  results:
    description:
      - Names of the variables in which the hosts' verdicts may be registered; the first that
        holds a verdict counts.
    type: list
    elements: str
    default: [flexai_node_verdict, preflight_probe]
  cluster:
    description: RV(flexai.xpu.cluster_verdict#module:verdict); left out for a site without cluster.
    type: dict
  cluster_failure:
    description: Why the cluster's changes broke off; the cluster is not ready then.
    type: str
    default: ""
  fail_unready:
    description: Whether a site that is not ready fails the task.
    type: bool
    default: true
extends_documentation_fragment:
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Show the verdict
  flexai.xpu.site_verdict:
    site: north
    file: /var/lib/awx/verdict.json
    hosts: "{{ groups['flexai_nodes'] }}"
  run_once: true
"""

RETURN = r"""
verdict:
  description: The verdict of the site.
  returned: always
  type: dict
"""
