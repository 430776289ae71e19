# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_report
short_description: Write what is where, as JSON, Markdown and one HTML file
version_added: 0.1.0
description:
  - Runs on the controller after M(flexai.xpu.node_probe) and M(flexai.xpu.node_verdict) on every
    host. Writes C(report.json) (the verdict, with each host's facts and plan, and which hosts have
    what of each component), C(report.md) and C(report.html).
  - A host without a verdict is in it all the same, with the reason. A site that is not ready is no
    failure.
  - It is an action plugin; no module is executed and nothing is changed but these files, which are
    written in check mode too.
options:
  site:
    description: Name of the site.
    type: str
    default: default
  directory:
    description: Where the files go on the controller; made where it is missing.
    type: path
    required: true
  hosts:
    description: The hosts that the report is about.
    type: list
    elements: str
    required: true
  probe:
    description: Name of the variable in which the hosts' probes are registered.
    type: str
    default: report_probe
  verdict:
    description: Name of the variable in which the verdicts of hosts with differences are.
    type: str
    default: report_verdict
  cluster:
    description: RV(flexai.xpu.cluster_verdict#module:verdict); left out for a site without cluster.
    type: dict
  cluster_failure:
    description: Why the cluster could not be judged.
    type: str
    default: ""
extends_documentation_fragment:
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Write the report
  flexai.xpu.site_report:
    site: north
    directory: /srv/flexai/report
    hosts: "{{ groups['flexai_nodes'] }}"
  run_once: true
"""

RETURN = r"""
files:
  description: What was written.
  returned: success
  type: list
  elements: str
report:
  description: What C(report.json) holds.
  returned: success
  type: dict
"""
