# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: container_engine
short_description: Install containerd or Docker where it is absent
version_added: 0.1.0
description:
  - Asks the package manager for the engine, from the host's own repositories, and starts its
    service. An engine that is there is never changed; one that is too old is refused.
options:
  engine:
    description: Which one; needed with V(present).
    type: str
    choices: [containerd, crio, docker, cri-dockerd]
  packages:
    description: Packages to install; those of the distribution when not given.
    type: list
    elements: str
    default: []
  since:
    description:
      - The oldest version that will do. Empty means 1.6.0 of containerd, 1.23.0 of CRI-O, 25.0.3
        of Docker (moby), 0.3.0 of cri-dockerd.
    type: str
    default: ""
  state:
    description: V(absent) removes the packages that this module installed; anything else stays.
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
- name: Have Docker as document 002 wants it
  flexai.xpu.container_engine:
    engine: docker
"""

RETURN = r"""
version:
  description: Version of the engine after the run; empty where there is none.
  returned: success
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _container_engine as engines
from ..module_utils import _packages as packages
from ..module_utils import _records as records
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host, system_of

INSTALL_LIMIT_S = 1800
UNIT_LIMIT_S = 120


def install(host: Host, facts: engines.Facts, wanted: engines.Wanted) -> None:
    names = engines.packages(wanted, facts.system, facts.engine)
    before = packages.everything(host)
    # Noted first: a run that dies in the package manager leaves nothing that looks like the site's.
    records.write(host, engines.RECORD, {"engine": facts.engine, "packages": list(names)})
    argv = packages.install_argv(before.manager, names)
    remedy = "give the host a repository that has them, or others."
    try:
        packages.must(host, argv, INSTALL_LIMIT_S, remedy)
    finally:
        came = packages.everything(host).versions.keys() - before.versions.keys()
        record = {"engine": facts.engine, "packages": sorted(came)} if came else {}
        records.write(host, engines.RECORD, record)
    unit = engines.UNITS[facts.engine]
    done = host.run(["systemctl", "enable", "--now", unit], timeout_s=UNIT_LIMIT_S)
    if done.rc != 0:
        raise XpuError(
            f"{unit} does not start: {done.err.strip()[-800:]}.", f"look at `journalctl -u {unit}`."
        )
    after = engines.plan(engines.observe(host, facts.engine, facts.system), wanted)
    if after.action != OK:
        raise XpuError(
            f"The packages {', '.join(names)} are installed, but {after.reason}.",
            "take packages of a newer version in container_engine_packages.",
        )


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    if params["state"] == "absent":
        return _absent(host, check)
    wanted = engines.Wanted(True, tuple(params["packages"]), params["since"])
    facts = engines.observe(host, params["engine"], system_of(host)[0])
    decision = engines.plan(facts, wanted)
    if decision.action == BLOCKED:
        raise XpuError(f"The container engine can't be used: {decision.reason}.", "see above.")
    changed = decision.action != OK
    names = engines.packages(wanted, facts.system, facts.engine) if changed else ()
    if changed and not check:
        install(host, facts, wanted)
        facts = engines.observe(host, facts.engine, facts.system)
    return {
        "changed": changed,
        "version": facts.version,
        "diff": {"before": "", "after": _lines(names)},
    }


def _absent(host: Host, check: bool) -> dict[str, t.Any]:
    names = records.read(host, engines.RECORD).get("packages", [])
    if names and not check:
        manager = packages.everything(host).manager
        argv = packages.removal_argv(manager, names)
        packages.must(host, argv, INSTALL_LIMIT_S, "mend the package system and run again.")
        records.write(host, engines.RECORD, {})
    return {"changed": bool(names), "version": "", "diff": {"before": _lines(names), "after": ""}}


def _lines(names: t.Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "engine": {"type": "str", "choices": ["containerd", "crio", "docker", "cri-dockerd"]},
            "packages": {"type": "list", "elements": "str", "default": []},
            "since": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("engine",))],
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
