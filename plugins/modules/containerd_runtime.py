# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: containerd_runtime
short_description: Put the runtimes for cards and slices beside a site's containerd configuration
version_added: 0.1.0
description:
  - Writes one drop-in that holds the complete effective CRI table and the runtimes C(nvidia) and
    C(nvidia-cdi), since an imported file replaces the plugin's whole table.
  - C(config.toml) gets an C(imports) entry only when it has none that covers the drop-in; its
    former text is kept under C(/var/lib/flexai-xpu/originals) as long as the entry is there.
  - K3s and RKE2 register the runtimes themselves when they start; their hosts are left alone.
  - containerd is restarted only when something changed. When it does not come back, the former
    files are put back, it is started with them, and the error says so.
options:
  state:
    description:
      - V(absent) takes the drop-in, our C(imports) entry and the kept text away; what the site has
        edited since stays.
    type: str
    choices: [present, absent]
    default: present
  engine_expected:
    description:
      - Whether the engine is about to be installed, so that its absence is no error in check mode;
        what will be configured can't be predicted then.
    type: bool
    default: false
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Give containerd its runtimes for slices
  flexai.xpu.containerd_runtime:
"""

RETURN = r"""
restarted:
  description: Whether containerd was restarted.
  returned: success
  type: bool
"""

import os
import tempfile
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _containerd as containerd
from ..module_utils import _rancher as rancher
from ..module_utils import _service as service
from ..module_utils._decision import BLOCKED
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host
from ..module_utils._texts import Texts, read, write

UNIT = "containerd.service"
ANSWER_LIMIT_S = 30.0

FILES = (containerd.DROP_IN, containerd.CONFIG_FILE, containerd.ORIGINAL_FILE)


def base_dump(host: Host, config: str) -> str:
    """containerd's effective configuration as it is without our drop-in."""
    text = containerd.with_imports(config, containerd.foreign_imports(host, config))
    handle, scratch = tempfile.mkstemp(suffix=".toml")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        done = host.run([containerd.PROGRAM, "--config", scratch, "config", "dump"])
    finally:
        os.unlink(scratch)
    if done.rc != 0:
        raise XpuError(
            f"`containerd config dump` ended with rc {done.rc}: {done.err.strip()[-400:]}.",
            f"mend {containerd.CONFIG_FILE} and the files that it imports.",
        )
    return done.out


def wanted_texts(host: Host, facts: containerd.Facts) -> Texts:
    config = containerd.importing_us(facts.config)
    drop_in = facts.drop_in
    if not containerd.drop_in_is_current(drop_in, facts.basis):
        drop_in = containerd.render(base_dump(host, config), facts.basis)
    texts: Texts = {containerd.DROP_IN: drop_in, containerd.CONFIG_FILE: config}
    if config != facts.config:
        # What doesn't import us is the site's own text, whatever was kept before; kept first, so
        # that it is there when the import is.
        return {containerd.ORIGINAL_FILE: facts.config or "", **texts}
    return texts


def texts_without_us(host: Host, facts: containerd.Facts) -> Texts:
    original = host.read(containerd.ORIGINAL_FILE)
    return {
        containerd.DROP_IN: None,
        containerd.CONFIG_FILE: containerd.without_our_import(facts.config, original),
        containerd.ORIGINAL_FILE: None,
    }


def answers(host: Host) -> bool:
    """Whether containerd serves, CRI plugin included, within its time."""
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while True:
        plugins = host.run(["ctr", "plugins", "ls"], timeout_s=10)
        if plugins.rc == 0:
            states = [line.split()[-1] for line in plugins.out.splitlines() if " cri " in line]
            return bool(states) and "error" not in states
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def restart(host: Host, texts: Texts, former: Texts) -> bool:
    """Restart with the new files; go back to the former ones when that fails."""
    if not host.is_real:
        return False
    if service.restart(host, UNIT) and answers(host):
        return True
    words = service.last_words(host, UNIT)
    write(host, former)
    runs = service.restart(host, UNIT) and answers(host)
    preposition = "without" if texts[containerd.DROP_IN] is None else "with"
    raise XpuError(
        f"containerd did not come back {preposition} {containerd.DROP_IN}; its former files are in "
        f"place again, and it {'runs' if runs else 'does not run'} with them. It said: {words}.",
        f"mend what it names (`journalctl -u {UNIT}` has more), then run again.",
    )


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    if rancher.observe(host):
        return {"changed": False, "restarted": False}
    facts = containerd.observe(host)
    if check and params.get("engine_expected") and not facts.installed:
        return {"changed": True, "restarted": False}
    former: Texts = read(host, FILES)
    if params["state"] == "present":
        decision = containerd.plan(facts)
        if decision.action == BLOCKED:
            raise XpuError(f"containerd can't be configured: {decision.reason}.", "see above.")
        texts = wanted_texts(host, facts)
        due = facts.restart_pending
    else:
        texts, due = texts_without_us(host, facts), False
    differing = [path for path, text in texts.items() if former[path] != text]
    # The kept original is ours alone: containerd doesn't know it.
    restart_due = due or any(path != containerd.ORIGINAL_FILE for path in differing)
    restarted = False
    if (differing or due) and not check:
        write(host, texts)
        restarted = restart_due and restart(host, texts, former)
    return {
        "changed": bool(differing) or due,
        "restarted": restarted,
        "diff": [
            {
                "before_header": path,
                "after_header": path,
                "before": former[path] or "",
                "after": texts[path] or "",
            }
            for path in differing
        ],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "engine_expected": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
