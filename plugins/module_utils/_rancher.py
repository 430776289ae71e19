# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""K3s and RKE2: they bring a containerd of their own, and write its configuration at each start.

When they start and find NVIDIA's programs, they register them as runtimes by themselves. So nothing
is written here: what they have registered is used, and what they lack is said.
"""

from __future__ import annotations

import typing as t

from . import _containerd as containerd
from . import _owners as owners
from ._decision import ADOPT, COEXIST, OK, REFUSE, Claim, Decision
from ._host import Host

HOMES = {"k3s": "/var/lib/rancher/k3s", "rke2": "/var/lib/rancher/rke2"}
CONFIG_FILE = "{home}/agent/etc/containerd/config.toml"


class Facts(t.NamedTuple):
    """Which of the two, and the program of each of our runtimes that it has registered."""

    name: str
    config_file: str
    programs: t.Mapping[str, str]


def observe(host: Host) -> Facts | None:
    """None where neither runs."""
    for name, home in HOMES.items():
        path = CONFIG_FILE.format(home=home)
        text = host.read(path)
        if text is not None:
            return Facts(name, path, containerd.programs_named(text))
    return None


def plan(facts: Facts) -> Decision:
    component, wanted = containerd.COMPONENT, containerd.WANTED
    found = "+".join(name for name in containerd.RUNTIMES if name in facts.programs)
    claimed = owners.plan_runtimes(facts.config_file, facts.programs, containerd.RUNTIMES, None)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(component, wanted, found)
    lacking = [name for name in containerd.RUNTIMES if name not in facts.programs]
    if not lacking:
        reason = f"{facts.name} has registered {', '.join(containerd.RUNTIMES)} itself"
        return Claim(ADOPT, facts.name, reason).on(Decision(component, OK, wanted, found))
    reason = (
        f"{facts.name} registers {', '.join(lacking)} itself when it starts after the container "
        f"toolkit was installed: restart it then; a version that doesn't know "
        f"{lacking[-1]} needs it in {facts.config_file}.tmpl"
    )
    return Claim(COEXIST, facts.name, reason).on(Decision(component, OK, wanted, found))
