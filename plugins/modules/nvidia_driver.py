# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Install or remove the NVIDIA driver, by its .run installer or as packages
version_added: 0.1.0
description:
  - Runs the installer with document 000's flags, or the host's package manager, when the wanted
    version isn't there, bars nouveau by a file of its own in C(/etc/modprobe.d), and enables the
    persistence daemon. When that file changes, C(update-initramfs) or C(dracut) makes the initramfs
    of the running kernel anew.
  - Packages come from the host's own repositories. All of the driver's are held to its version by a
    pin in C(/etc/apt/preferences.d), and DKMS must have built the module for the running kernel.
  - Stops before any change where the module couldn't be built or loaded (headers, compiler, Secure
    Boot, cards that the flavour doesn't drive), where Fabric Manager is of another version, and
    where programs use the cards.
  - A driver that fails after its installation is replaced by the former one, whose installer lies
    in the cache of artefacts, or whose packages a repository still has.
  - A driver that somebody else installed, as packages or by a C(.run) file, is used where it is the
    wanted version and refused where it isn't; it is never changed nor removed.
  - Packages and C(.run) files never meet on one host; a driver that came the other way is refused.
  - The host isn't rebooted; RV(reboot_required) says when it should be.
options:
  version:
    description: Version that shall be there.
    type: str
    required: true
  installer:
    description: Path of the C(.run) file on the host; needed when something must be installed.
    type: path
  method:
    description: By the C(.run) file, or as packages of the host's repositories.
    type: str
    choices: [run, packages]
    default: run
  packages:
    description:
      - Names of the driver's packages, with C({branch}) where the branch stands.
      - Empty takes those for computing alone that NVIDIA's and Ubuntu's repositories have.
    type: list
    elements: str
    default: []
  fabric_packages:
    description:
      - Names of the packages that follow the driver where there are NVSwitches, whichever the
        method. Empty leaves them to the site, and another version than the driver's is refused.
    type: list
    elements: str
    default: []
  kernel_module_type:
    description: V(open) or V(proprietary); empty takes the installer's own choice for the version.
    type: str
    choices: ["", "open", "proprietary"]
    default: ""
  persistenced:
    description: Whether C(nvidia-persistenced) is enabled and started.
    type: bool
    default: true
  allow_downgrade:
    description: Whether an older version may replace a newer one.
    type: bool
    default: false
  signing_key:
    description: Path on the host of the private key that signs the module, for Secure Boot.
    type: str
    default: ""
  signing_certificate:
    description: Path on the host of its certificate, enrolled there (C(mokutil --import)).
    type: str
    default: ""
  state:
    description:
      - V(absent) runs C(nvidia-uninstall), or purges the packages that came with the driver, and
        takes our files away.
      - V(prepared) changes nothing of the driver's; it is an error where the packages that
        V(present) would install are in no repository of the host.
    type: str
    choices: [present, absent, prepared]
    default: present
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Install the driver
  flexai.xpu.nvidia_driver:
    version: 580.95.05
    installer: /var/cache/flexai-xpu/NVIDIA-Linux-x86_64-580.95.05.run

- name: Install it as packages, with the open kernel module
  flexai.xpu.nvidia_driver:
    version: 580.95.05
    method: packages
    kernel_module_type: open
"""

RETURN = r"""
reboot_required:
  description: The running kernel module is of another version than the installed driver, or nouveau
    holds the cards until the next boot.
  returned: success
  type: bool
left:
  description: What was not removed since it is not ours.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _driver_change as change
from ..module_utils import _nvidia_driver as driver
from ..module_utils import _resume as resume
from ..module_utils._driver_packages import RUN
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def _wanted(params: t.Mapping[str, t.Any]) -> driver.Wanted:
    return driver.Wanted(
        params["version"],
        params["kernel_module_type"],
        params["persistenced"],
        params["allow_downgrade"],
        params.get("signing_key") or "",
        params.get("signing_certificate") or "",
        params.get("method") or RUN,
        params.get("packages") or (),
        params.get("fabric_packages") or (),
    )


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    if params["state"] == "absent" and not check:
        resume.settle(host)  # or the next boot would bring the driver back
    return change.converge(
        host, _wanted(params), params.get("installer") or "", params["state"], check
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str", "required": True},
            "installer": {"type": "path"},
            "method": {"type": "str", "choices": ["run", "packages"], "default": "run"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "fabric_packages": {"type": "list", "elements": "str", "default": []},
            "kernel_module_type": {
                "type": "str",
                "choices": ["", "open", "proprietary"],
                "default": "",
            },
            "persistenced": {"type": "bool", "default": True},
            "allow_downgrade": {"type": "bool", "default": False},
            # A path, not a secret.
            "signing_key": {"type": "str", "default": "", "no_log": False},
            "signing_certificate": {"type": "str", "default": "", "no_log": False},
            "state": {
                "type": "str",
                "choices": ["present", "absent", "prepared"],
                "default": "present",
            },
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
