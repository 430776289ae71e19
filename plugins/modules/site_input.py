# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: site_input
short_description: Check what a site wrote, before any host is contacted
version_added: 0.1.0
description:
  - Runs on the controller. Finds unknown variables, wrong types, contradicting versions, hosts that
    stand in the inventory twice, two hosts with one Kubernetes node name, missing artefacts and
    wrong digests.
  - Versions with known dangers that the site's profile takes are warned of.
  - It is an action plugin; no module is executed and nothing is changed.
options:
  components:
    description: The components of a node that the run is about; all when not given.
    type: list
    elements: str
    choices:
      - nvidia_driver
      - cuda_toolkit
      - container_engine
      - container_toolkit
      - container_runtime
      - xpu_runtime
      - xpu_agent
      - images
extends_documentation_fragment:
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Check what a site wrote, before any host is contacted
  flexai.xpu.site_input:
  run_once: true
"""

RETURN = r"""
hosts:
  description: How many hosts were looked at.
  returned: success
  type: int
artefacts:
  description: How many artefacts were checked against their digests.
  returned: success
  type: int
"""
