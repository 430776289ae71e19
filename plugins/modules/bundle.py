# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Write a directory with the manifest and all its artefacts
version_added: 0.1.0
description:
  - Runs on the controller. Copies every artefact of the manifest, from its file or URL, to
    C(<dest>/<sha256>/<file>), and writes C(manifest.yml) beside them when all are there.
  - A digest is checked while its file is written; a file that isn't the one never appears. What
    lies there already with the right digest is kept. Files of former bundles stay.
  - Where the manifest says V(first-use) in place of a digest, the one in the site's lock file is
    used, or recorded there now; the bundle's manifest then holds it.
  - It is an action plugin; no module is executed and no host is contacted.
options:
  manifest:
    description: The artefact manifest.
    type: path
    required: true
  dest:
    description: Directory of the bundle; made where it is missing.
    type: path
    required: true
  lock:
    description: The site's lock file; without it C(lock.yml) beside the manifest.
    type: path
extends_documentation_fragment:
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows the bundle's manifest; artefacts are binary files.
    support: partial
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Write a bundle for a site without network
  flexai.xpu.bundle:
    manifest: /srv/flexai/manifest.yml
    dest: /media/usb/flexai
  run_once: true
"""

RETURN = r"""
manifest:
  description: The bundle's manifest, for C(flexai_manifest) at the site that uses it.
  returned: success
  type: str
written:
  description: Files of artefacts that were written, or would be.
  returned: success
  type: list
  elements: str
"""
