# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""SELinux's context of files that containers read: a rule of the host, then the files after it.

Without a rule the files would lose their context with the next relabelling of the host. A site's
own rule for the same files is the site's.
"""

from __future__ import annotations

import re
import typing as t

from ._errors import XpuError
from ._host import Host

SWITCH = "/sys/fs/selinux/enforce"
CONFIG = "/etc/selinux/config"
# What every container may read and run, and none may write; from container-selinux.
READ_ONLY = "container_ro_file_t"
LIMIT_S = 300
_POLICY = re.compile(r"^SELINUXTYPE=(\S+)$", re.MULTILINE)


class Facts(t.NamedTuple):
    """Whether SELinux is on, and the type that a rule of the host gives our files."""

    on: bool = False
    rule: str = ""


def pattern(directory: str) -> str:
    """As `semanage fcontext` has it: the directory and all below."""
    return f"{directory}(/.*)?"


def observe(host: Host, directory: str) -> Facts:
    if not host.exists(SWITCH):
        return Facts()
    policy = _POLICY.search(host.read(CONFIG) or "")
    name = policy.group(1) if policy else "targeted"
    rules = host.read(f"/etc/selinux/{name}/contexts/files/file_contexts.local") or ""
    for line in rules.splitlines():
        words = line.split()
        if words[:1] == [pattern(directory)]:
            return Facts(True, words[-1].split(":")[2] if ":" in words[-1] else words[-1])
    return Facts(True)


def is_due(facts: Facts) -> bool:
    return facts.on and not facts.rule


def _must(host: Host, argv: t.Sequence[str], remedy: str) -> None:
    done = host.run(argv, timeout_s=LIMIT_S)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-400:]
        raise XpuError(f"{' '.join(argv)} ended with rc {done.rc}: {tail}.", remedy)


def add_rule(host: Host, directory: str) -> None:
    _must(
        host,
        ["semanage", "fcontext", "--add", "--type", READ_ONLY, pattern(directory)],
        "install policycoreutils-python-utils and container-selinux on the host.",
    )


def remove_rule(host: Host, directory: str) -> None:
    _must(
        host,
        ["semanage", "fcontext", "--delete", pattern(directory)],
        "install policycoreutils-python-utils on the host.",
    )


def relabel(host: Host, directory: str) -> None:
    """The files as the host's rules have them, the site's too."""
    _must(host, ["restorecon", "-R", directory], "install policycoreutils on the host.")
