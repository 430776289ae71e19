# SPDX-License-Identifier: Apache-2.0
"""A tenant of an NPU, by ACL alone: what an application does. It knows nothing of flexnpud.

npu_tenant.py spin MICROSECONDS [STREAMS]  operators of that length for ever, waiting for none
npu_tenant.py steps MICROSECONDS           the same, waiting for each
npu_tenant.py memory BYTES...              allocate each, and say what ACL answered
npu_tenant.py hold BYTES                   the same with one, then wait for a line of input
npu_tenant.py every LAUNCHES_DEF           each kind of launch once, then wait for them
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path

ACL = ctypes.CDLL("libascendcl.so")
Pointer = ctypes.c_void_p


class AclError(RuntimeError):
    """An ACL call answered with an error."""


def check(code: int) -> None:
    if code != 0:
        raise AclError(f"ACL answered {code}")


def streams(count: int) -> list[Pointer]:
    made = [Pointer() for _ in range(count)]
    for stream in made:
        check(ACL.aclrtCreateStream(ctypes.byref(stream)))
    return made


def spinner() -> Pointer:
    binary, function = Pointer(), Pointer()
    check(ACL.aclrtBinaryLoadFromFile(b"spin.o", None, ctypes.byref(binary)))
    check(ACL.aclrtBinaryGetFunction(binary, b"spin_ns", ctypes.byref(function)))
    return function


def spin(microseconds: int, count: int, waits: bool) -> None:
    function, among = spinner(), streams(count)
    length = ctypes.c_uint64(microseconds * 1000)
    print("spins", flush=True)
    number = 0
    while True:
        stream = among[number % count]
        number += 1
        check(ACL.aclrtLaunchKernel(function, 1, ctypes.byref(length), 8, stream))
        if waits:
            check(ACL.aclrtSynchronizeStream(stream))


def allocate(size: int) -> dict[str, int]:
    address = Pointer()
    code = ACL.aclrtMalloc(ctypes.byref(address), ctypes.c_size_t(size), 0)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    check(ACL.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total)))
    return {"code": code, "free": free.value, "total": total.value, "address": address.value or 0}


def every_launch(table: Path) -> None:
    runtime = ctypes.CDLL(None if os.environ.get("LD_PRELOAD") else "libruntime.so")
    among = streams(1)
    ran = []
    for found in re.finditer(r"LAUNCH\((\w+),\s*\(([^)]*)\)", table.read_text()):
        arguments = [
            among[0] if part.endswith("stream") else (None if "*" in part else 0)
            for part in (words.strip() for words in found[2].split(","))
        ]
        check(getattr(runtime, found[1])(*arguments))
        ran.append(found[1])
    check(ACL.aclrtSynchronizeStream(among[0]))
    print(json.dumps(ran), flush=True)


def main(words: list[str]) -> None:
    check(ACL.aclInit(None))
    check(ACL.aclrtSetDevice(0))
    verb = words[0]
    if verb in ("spin", "steps"):
        spin(int(words[1]), int(words[2]) if len(words) > 2 else 1, verb == "steps")
    elif verb == "memory":
        print(json.dumps([allocate(int(word)) for word in words[1:]]), flush=True)
    elif verb == "hold":
        print(json.dumps(allocate(int(words[1]))), flush=True)
        sys.stdin.readline()
    elif verb == "every":
        every_launch(Path(words[1]))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
