# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error the testbed raises on purpose."""

from __future__ import annotations


class TestbedError(Exception):
    """Something a person can mend: what was found, and what to do about it."""

    # pytest collects classes named Test*; this is none.
    __test__ = False

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message
