# SPDX-License-Identifier: Apache-2.0
"""``seccomp.py PROFILE PROGRAM…``: run a program under a container engine's seccomp profile.

Through libseccomp by ctypes. Rules that hold only with some capability are left out, as for a
container without any; of conditions on arguments the first one is applied."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

ERRNO, ALLOW = 0x00050000, 0x7FFF0000
COMPARE = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5,
           "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7}  # fmt: skip


class Condition(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("compare", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def conditions(rule: dict[str, Any]) -> list[Condition]:
    return [
        Condition(one["index"], COMPARE[one["op"]], one["value"], one.get("valueTwo", 0))
        for one in (rule.get("args") or [])[:1]
    ]


def load(profile: dict[str, Any]) -> int:
    """Apply the profile to this process; returns how many rules it has."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    filters = ctypes.c_void_p(
        library.seccomp_init(ctypes.c_uint32(ERRNO | profile.get("defaultErrnoRet", 1)))
    )
    added = 0
    for rule in profile["syscalls"]:
        if rule["action"] != "SCMP_ACT_ALLOW" or (rule.get("includes") or {}).get("caps"):
            continue
        when = conditions(rule)
        array = (Condition * len(when))(*when)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue
            failed = library.seccomp_rule_add_array(
                filters, ctypes.c_uint32(ALLOW), number, ctypes.c_uint(len(when)), array
            )
            assert failed == 0, (name, failed)
            added += 1
    assert library.seccomp_load(filters) == 0
    return added


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        assert load(json.load(file)) > 200
    os.execv(sys.argv[2], sys.argv[2:])
