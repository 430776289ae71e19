# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The one error that domain code raises, and the one place where it becomes a module failure."""

from __future__ import annotations

import typing as t


class XpuError(Exception):
    """What went wrong (naming the thing and the value found) and what the operator can do."""

    def __init__(self, msg: str, remedy: str) -> None:
        super().__init__(msg)
        self.msg = msg
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.msg} Remedy: {self.remedy}"


def run_module(module: t.Any, body: t.Callable[[t.Any], dict[str, t.Any]]) -> None:
    """Run *body* and leave the module with its result, or with the error's text and remedy."""
    try:
        result = body(module)
    except XpuError as error:
        module.fail_json(msg=str(error), remedy=error.remedy)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or 'A file operation'}: {error.strerror or error}. "
            "Remedy: run as root (become: true) on a host whose file systems are writable.",
            remedy="run as root (become: true) on a host whose file systems are writable.",
        )
    else:
        module.exit_json(**result)
