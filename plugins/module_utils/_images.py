# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Container images on a host, compared by manifest digest."""

from __future__ import annotations

import typing as t

from ._decision import CHANGE, INSTALL, OK, Decision
from ._host import Host

COMPONENT = "images"


def parse_ctr_list(text: str) -> dict[str, str]:
    """``ctr images ls``: reference → manifest digest. The columns are REF TYPE DIGEST …"""
    found = {}
    for line in text.splitlines():
        digests = [word for word in line.split() if word.startswith("sha256:")]
        if digests and not line.startswith("sha256:"):
            found[line.split()[0]] = digests[0]
    return found


def observe(host: Host, wanted: t.Mapping[str, str]) -> dict[str, str]:
    """Images of the kubelet's namespace; no program is asked when none is wanted."""
    if not wanted:
        return {}
    done = host.run(["ctr", "-n", "k8s.io", "images", "ls"], timeout_s=30)
    return parse_ctr_list(done.out) if done.rc == 0 else {}


def plan(found: t.Mapping[str, str], wanted: t.Mapping[str, str]) -> Decision:
    lacking = [name for name, digest in sorted(wanted.items()) if found.get(name) != digest]
    have = len(wanted) - len(lacking)
    summary = (f"{len(wanted)} images", f"{have} images")
    if not lacking:
        return Decision(COMPONENT, OK, *summary)
    return Decision(
        COMPONENT, CHANGE if have else INSTALL, *summary, "missing: " + ", ".join(lacking)
    )
