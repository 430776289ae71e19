# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: crio_runtime
short_description: Put the runtimes for cards and slices beside a site's CRI-O configuration
version_added: 0.1.0
description:
  - Writes one drop-in with the runtimes C(nvidia) and C(nvidia-cdi); the site's files stay.
  - CRI-O is restarted only when something changed, which leaves containers alone. When it does not
    come back, the former file is put back, it is started with that, and the error says so.
options:
  state:
    description: V(absent) takes the drop-in away.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Give CRI-O its runtimes for slices
  flexai.xpu.crio_runtime:
"""

RETURN = r"""
restarted:
  description: Whether CRI-O was restarted.
  returned: success
  type: bool
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _crio as crio
from ..module_utils import _service as service
from ..module_utils._decision import BLOCKED
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host
from ..module_utils._texts import Texts, read, write

UNIT = "crio.service"


def restart(host: Host, former: Texts) -> bool:
    """Restart with the new file; go back to the former one when that fails."""
    if not host.is_real:
        return False
    if service.restart(host, UNIT):
        return True
    words = service.last_words(host, UNIT)
    write(host, former)
    runs = service.restart(host, UNIT)
    raise XpuError(
        f"CRI-O did not come back with a changed {crio.DROP_IN}; its former state is in place "
        f"again, and it {'runs' if runs else 'does not run'} with that. It said: {words}.",
        f"mend what it names (`journalctl -u {UNIT}` has more), then run again.",
    )


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    facts = crio.observe(host)
    present = params["state"] == "present"
    if present:
        decision = crio.plan(facts)
        if decision.action == BLOCKED:
            raise XpuError(f"CRI-O can't be configured: {decision.reason}.", "see above.")
    texts: Texts = {crio.DROP_IN: crio.TEXT if present else None}
    former = read(host, texts)
    due = present and facts.restart_pending
    changed = former != texts or due
    restarted = False
    if changed and not check:
        write(host, texts)
        restarted = restart(host, former)
    return {
        "changed": changed,
        "restarted": restarted,
        "diff": {
            "before_header": crio.DROP_IN,
            "after_header": crio.DROP_IN,
            "before": former[crio.DROP_IN] or "",
            "after": texts[crio.DROP_IN] or "",
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
