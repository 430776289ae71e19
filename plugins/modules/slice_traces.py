#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: slice_traces
short_description: Take from a host what a device plugin that is gone left of its slices
version_added: 0.1.0
description:
  - Removes C(/etc/cdi/huawei.com-vgpu.yaml), C(/etc/xpu), C(/run/xpu) and C(/var/lib/xpu).
  - Fails while a pod of this host still has a slice, as the kubelet's directories tell, and while
    slices of the host itself are registered (M(flexai.xpu.vgpu)).
options:
  force:
    description: Whether to remove them all the same; what was found is a warning then.
    type: bool
    default: false
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Take the slices' files away
  flexai.xpu.slice_traces:
"""

RETURN = r"""
removed:
  description: What was, or would be, removed.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

# Where gpu-device-plugin keeps slices (docs/interfaces.md section 5); pods' in memory, those of
# an older release beside the host's own.
SLICES = "/etc/xpu"
PODS_SLICES = "/run/xpu"
CDI_FILE = "/etc/cdi/huawei.com-vgpu.yaml"
TRACES = (CDI_FILE, SLICES, PODS_SLICES, "/var/lib/xpu")
PODS = "/var/lib/kubelet/pods"


def holders(host: Host) -> list[str]:
    """Pods that have a slice's directory, and that the kubelet has not cleared away."""
    paths = [*host.glob(f"{SLICES}/*"), *host.glob(f"{PODS_SLICES}/pods/*")]
    uids = sorted({path.rsplit("/", 1)[1] for path in paths})
    return [uid for uid in uids if host.exists(f"{PODS}/{uid}")]


def registered(host: Host) -> list[str]:
    """Slices that the host registered itself: containers that nobody here sees may have them."""
    return [path.rsplit("/", 1)[1] for path in host.glob(f"{SLICES}/host/*")]


def remove(host: Host, path: str) -> None:
    if host.is_directory(path):
        shutil.rmtree(host.path(path))
    else:
        host.remove(path)


def converge(host: Host, force: bool, check: bool) -> dict[str, t.Any]:
    pods, own = holders(host), registered(host)
    sentences = []
    if pods:
        sentences.append(f"These pods of this host hold slices (by uid): {', '.join(pods)}.")
    if own:
        sentences.append(f"These slices of the host itself are registered: {', '.join(own)}.")
    if sentences and not force:
        raise XpuError(
            f"{' '.join(sentences)} Nothing was changed.",
            "delete them first (slices of the host with flexai.xpu.vgpu and state: absent), or "
            "take it from under them with uninstall_force: true.",
        )
    there = [path for path in TRACES if host.exists(path)]
    for path in () if check else there:
        remove(host, path)
    if there and not check:
        host.remove_empty(os.path.dirname(CDI_FILE))
    return {
        "changed": bool(there),
        "removed": there,
        "warnings": sentences,
        "diff": {"before": "".join(f"{path}\n" for path in there), "after": ""},
    }


def _body(module: AnsibleModule) -> dict[str, t.Any]:
    return converge(Host(module.params["root"]), module.params["force"], module.check_mode)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run_module(module, _body)


if __name__ == "__main__":
    main()
