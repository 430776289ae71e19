# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Runs Ascend's ``.run`` packages; what a failure says, and where the vendor's log is."""

from __future__ import annotations

import typing as t

from . import _ascend_state as state
from ._errors import XpuError
from ._host import Host

INSTALL_LIMIT_S = 3600


def must(host: Host, argv: t.Sequence[str], remedy: str) -> None:
    done = host.run(argv, timeout_s=INSTALL_LIMIT_S)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-800:]
        raise XpuError(f"{' '.join(argv)} ended with rc {done.rc}: {tail}.", remedy)


def package(host: Host, path: str, flags: t.Sequence[str], what: str, remedy: str = "") -> None:
    """Run one package; *what* names it where it is missing."""
    if not path or not host.exists(path):
        raise XpuError(
            f"The package of the {what}, {path or '(none given)'}, is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    # Through sh, so that a cache mounted noexec does no harm.
    must(
        host,
        ["sh", host.path(path), *flags],
        remedy or f"read {state.LOG} on the host, mend what it names, and run this again.",
    )
