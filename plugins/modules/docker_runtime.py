# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: docker_runtime
short_description: Put the runtimes for cards and slices into Docker's daemon.json
version_added: 0.1.0
description:
  - Sets the keys C(runtimes.nvidia) and C(runtimes.nvidia-cdi); every other key keeps its meaning,
    and the former text is kept under C(/var/lib/flexai-xpu/originals).
  - dockerd is told to reload, which leaves containers alone. It is restarted only when that does
    not bring the runtimes and C(live-restore) keeps containers running.
options:
  state:
    description: V(absent) takes our keys out again.
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
- name: Give Docker its runtimes for slices
  flexai.xpu.docker_runtime:
"""

RETURN = r"""
restarted:
  description: Whether dockerd was restarted, not only reloaded.
  returned: success
  type: bool
"""

import json
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _docker as docker
from ..module_utils._decision import BLOCKED
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

UNIT = "docker.service"
ANSWER_LIMIT_S = 20.0


def _effective_runtimes(host: Host) -> set[str]:
    done = host.run(["docker", "info", "--format", "{{json .Runtimes}}"], timeout_s=20)
    try:
        return set(json.loads(done.out))
    except (ValueError, TypeError):
        return set()


def _has_ours(host: Host) -> bool:
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while not set(docker.RUNTIMES) <= _effective_runtimes(host):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def apply(host: Host, former: str | None, text: str | None) -> bool:
    """Bring the new file into force; whether that took a restart."""
    if not host.is_real:
        return False
    host.run(["systemctl", "reload-or-restart", UNIT], timeout_s=120)
    if text is None or "nvidia-cdi" not in text or _has_ours(host):
        return False
    running = host.run(["docker", "ps", "-q"]).out.strip()
    if docker.keeps_containers_on_restart(text) or not running:
        host.run(["systemctl", "restart", UNIT], timeout_s=120)
        if _has_ours(host):
            return True
    _restore(host, former)
    raise XpuError(
        "dockerd did not take the runtimes nvidia and nvidia-cdi; daemon.json has its former text "
        "again.",
        "look at `journalctl -u docker`; where containers run, set live-restore or stop them, so "
        "that dockerd may be restarted.",
    )


def _restore(host: Host, former: str | None) -> None:
    if former is None:
        host.remove(docker.CONFIG_FILE)
    else:
        host.write(docker.CONFIG_FILE, former)
    host.run(["systemctl", "reload-or-restart", UNIT], timeout_s=120)


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    facts = docker.observe(host)
    if params["state"] == "present":
        decision = docker.plan(facts)
        if decision.action == BLOCKED:
            raise XpuError(f"Docker can't be configured: {decision.reason}.", "see above.")
        text: str | None = docker.merged(facts.config)
    else:
        text = docker.without(facts.config, host.read(docker.ORIGINAL_FILE))
    changed = text != facts.config
    restarted = False
    if changed and not check:
        if params["state"] == "present" and not host.exists(docker.ORIGINAL_FILE):
            host.write(docker.ORIGINAL_FILE, facts.config or "", mode=0o600)
        if text is None:
            host.remove(docker.CONFIG_FILE)
        else:
            host.write(docker.CONFIG_FILE, text)
        restarted = apply(host, facts.config, text)
    return {
        "changed": changed,
        "restarted": restarted,
        "diff": {
            "before_header": docker.CONFIG_FILE,
            "after_header": docker.CONFIG_FILE,
            "before": facts.config or "",
            "after": text or "",
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
