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
    former text is kept under C(/var/lib/flexai-xpu/originals).
  - containerd is restarted only when something changed. When it does not come back, the former
    files are put back, it is started with them, and the error says so.
options:
  state:
    description: V(absent) takes the drop-in and our C(imports) entry away.
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
from ..module_utils._decision import BLOCKED
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

UNIT = "containerd.service"
ORIGINAL = "/var/lib/flexai-xpu/originals/containerd-config.toml"
ANSWER_LIMIT_S = 30.0

Texts = t.Dict[str, t.Optional[str]]


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
    return {containerd.DROP_IN: drop_in, containerd.CONFIG_FILE: config}


def texts_without_us(host: Host, facts: containerd.Facts) -> Texts:
    config, original = facts.config, host.read(ORIGINAL)
    if config is not None and original is not None and config == containerd.importing_us(original):
        config = original or None
    return {containerd.DROP_IN: None, containerd.CONFIG_FILE: config}


def _write(host: Host, texts: Texts) -> None:
    for path, text in texts.items():
        if text is None:
            host.remove(path)
        elif host.read(path) != text:
            host.write(path, text)


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


def restart(host: Host, former: Texts) -> bool:
    """Restart with the new files; go back to the former ones when that fails."""
    if not host.is_real:
        return False
    host.run(["systemctl", "restart", UNIT], timeout_s=120)
    if answers(host):
        return True
    why = host.run(["journalctl", "-u", UNIT, "-n", "5", "--no-pager", "-o", "cat"]).out.strip()
    _write(host, former)
    host.run(["systemctl", "restart", UNIT], timeout_s=120)
    state = "runs with its former configuration" if answers(host) else "does not run"
    raise XpuError(
        f"containerd did not come back with {containerd.DROP_IN}; it now {state}. It said: {why}.",
        "mend what it names in the site's own configuration, then run again.",
    )


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    facts = containerd.observe(host)
    former: Texts = {containerd.DROP_IN: facts.drop_in, containerd.CONFIG_FILE: facts.config}
    if params["state"] == "present":
        decision = containerd.plan(facts)
        if decision.action == BLOCKED:
            raise XpuError(f"containerd can't be configured: {decision.reason}.", "see above.")
        texts = wanted_texts(host, facts)
        due = facts.restart_pending
    else:
        texts, due = texts_without_us(host, facts), False
    differing = [path for path, text in texts.items() if former[path] != text]
    restarted = False
    if (differing or due) and not check:
        keep_original = params["state"] == "present" and containerd.CONFIG_FILE in differing
        if keep_original and not host.exists(ORIGINAL):
            host.write(ORIGINAL, facts.config or "", mode=0o600)
        _write(host, texts)
        restarted = restart(host, former)
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
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
