# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: xpu_agent
short_description: Install the program and unit that look after slices on a host without Kubernetes
version_added: 0.1.0
description:
  - Installs C(/usr/local/bin/gpu-device-plugin) and the unit C(xpu-agent.service), enables and
    starts it.
  - Slices that are registered stay, and containers with them run on, whatever is done here.
options:
  state:
    description:
      - V(auto) is V(present) where O(engine) comes out as Docker, else V(absent).
    type: str
    choices: [auto, present, absent]
    default: auto
  engine:
    description: The container engine that slices run on, as role container_runtime has it.
    type: str
    choices: [auto, containerd, crio, docker, cri-dockerd]
    default: auto
  version:
    description: Version of the program.
    type: str
    default: ""
  sha256:
    description: Digest of the program.
    type: str
    default: ""
  program:
    description: Path of the program's artefact on the host; needed when it isn't installed.
    type: path
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Look after the slices of this host
  flexai.xpu.xpu_agent:
    version: 0.1.0
    sha256: "{{ artefact.artefact.sha256 }}"
    program: "{{ artefact.path }}"
"""

RETURN = r"""
restarted:
  description: Whether the unit was started or restarted.
  returned: success
  type: bool
"""

import os
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _records as records
from ..module_utils import _service as service
from ..module_utils import _xpu_agent as agent
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host
from ..module_utils._plan import choose_engine
from ..module_utils._xpu_runtime import release_name


def copy(host: Host, artefact: str) -> None:
    """Put the program in place by one rename."""
    if not artefact or not host.exists(artefact):
        raise XpuError(
            f"The program {artefact or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    final = host.path(agent.PROGRAM)
    scratch = f"{final}.flexai-{os.getpid()}"
    os.makedirs(os.path.dirname(final), mode=0o755, exist_ok=True)
    try:
        shutil.copyfile(host.path(artefact), scratch)
        os.chmod(scratch, 0o755)
        with open(scratch, "rb") as stream:
            os.fsync(stream.fileno())
        os.rename(scratch, final)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


def install(host: Host, facts: agent.Facts, params: t.Mapping[str, t.Any]) -> None:
    # The record comes first: killed after it, what there is of ours is known to be ours.
    record = {"version": params["version"], "sha256": params["sha256"]}
    if facts.record != record:
        records.write(host, agent.COMPONENT, record)
    if facts.digest != params["sha256"]:
        copy(host, params["program"] or "")
    host.write(agent.UNIT_FILE, agent.UNIT_TEXT)
    if not facts.enabled:
        host.point(agent.WANTED_BY, agent.UNIT_FILE)
    if not host.is_real:
        return
    host.run(["systemctl", "daemon-reload"])
    if not service.restart(host, agent.UNIT):
        raise XpuError(
            f"{agent.UNIT} did not start. It said: {service.last_words(host, agent.UNIT)}.",
            f"mend what it names (`journalctl -u {agent.UNIT}` has more), then run again.",
        )


def remove(host: Host) -> None:
    if host.is_real:
        host.run(["systemctl", "disable", "--now", agent.UNIT], timeout_s=service.START_LIMIT_S)
    for path in (agent.WANTED_BY, agent.UNIT_FILE, agent.PROGRAM):
        host.remove(path)
    if host.is_real:
        host.run(["systemctl", "daemon-reload"])
    records.write(host, agent.COMPONENT, {})


def _text(release: str, enabled: bool, runs: bool, unit: str) -> str:
    state = f"{agent.UNIT}: enabled {enabled}, runs {runs}\n"
    return f"{agent.PROGRAM}: {release or 'absent'}\n{state}{unit}"


def _describe(facts: agent.Facts) -> str:
    return _text(agent.found_release(facts), facts.enabled, facts.runs, facts.unit or "")


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    engine = choose_engine(host, params["engine"])
    present = agent.is_wanted(params["state"], engine, bool(params["sha256"]))
    wanted = release_name(params["version"], params["sha256"]) if present else ""
    facts = agent.observe(host)
    decision = agent.plan(facts, wanted)
    if decision.action == BLOCKED:
        raise XpuError(f"The agent can't be installed: {decision.reason}.", "see above.")
    changed = decision.action != OK
    after = _describe(facts)
    if changed:
        after = _text(wanted, present, present, agent.UNIT_TEXT if present else "")
    if changed and not check:
        if present:
            install(host, facts, params)
        else:
            remove(host)
    return {
        "changed": changed,
        "restarted": changed and present and host.is_real and not check,
        "diff": {"before": _describe(facts), "after": after},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "state": {"type": "str", "choices": ["auto", "present", "absent"], "default": "auto"},
            "engine": {
                "type": "str",
                "choices": ["auto", "containerd", "crio", "docker", "cri-dockerd"],
                "default": "auto",
            },
            "version": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "program": {"type": "path"},
        },
        required_if=[("state", "present", ("version", "sha256"))],
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
