# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""A unit of systemd that must take new files, and what it said when it did not."""

from __future__ import annotations

from ._host import Host

START_LIMIT_S = 120
WORDS = 6


def restart(host: Host, unit: str) -> bool:
    """Whether the unit runs afterwards, as systemd says."""
    # Without this, systemd refuses the start that shall mend a failed one ("repeated too quickly").
    host.run(["systemctl", "reset-failed", unit])
    return host.run(["systemctl", "restart", unit], timeout_s=START_LIMIT_S).rc == 0


def reload(host: Host, unit: str) -> bool:
    """Whether the unit took its files; one that is stopped is started."""
    argv = ["systemctl", "reload-or-restart", unit]
    return host.run(argv, timeout_s=START_LIMIT_S).rc == 0


def last_words(host: Host, unit: str) -> str:
    """The end of the unit's journal, on one line."""
    argv = ["journalctl", "-u", unit, "-n", str(WORDS), "--no-pager", "-o", "cat"]
    return " / ".join(host.run(argv).out.split("\n")).strip(" /.") or "nothing"
