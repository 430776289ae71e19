# SPDX-License-Identifier: GPL-3.0-or-later
"""A tenant that says what it was given and then keeps still: CUDA driver API and files alone.

``witness.py hold 5`` prints one line of JSON and ends after five seconds; ``hold`` without a
number stays until it is killed; ``look`` only prints. The line::

    {"at": seconds since 1970, "cards": [{"uuid": "GPU-…", "memory": bytes shown as total}],
     "nodes": [minors of /dev/nvidia*], "files": {"vgpu.config": "…", …}, "error": null or text}

A container without a card has an empty ``cards`` and, in ``error``, what the driver answered.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

SLICE = Path("/etc/xpu")
FILES = ("vgpu.config", "vgpu-ids.config")
CARD_NODE = re.compile(r"nvidia(\d+)")


def minors(names: list[str]) -> list[int]:
    """Minor numbers of the card nodes among the names of a device directory."""
    found = (CARD_NODE.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _ask(library: Any, call: str, *arguments: Any) -> None:
    code = getattr(library, call)(*arguments)
    if code != 0:
        raise OSError(f"{call} answered {code}")


def _card(library: Any, ordinal: int) -> dict[str, Any]:
    device, context, name = ctypes.c_int(), ctypes.c_void_p(), (ctypes.c_ubyte * 16)()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _ask(library, "cuDeviceGet", ctypes.byref(device), ordinal)
    _ask(library, "cuDeviceGetUuid_v2", name, device)
    _ask(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _ask(library, "cuCtxSetCurrent", context)
    _ask(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    _ask(library, "cuDevicePrimaryCtxRelease_v2", device)
    return {"uuid": f"GPU-{uuid.UUID(bytes=bytes(name))}", "memory": total.value}


def cards() -> list[dict[str, Any]]:
    """Every card the driver shows; OSError with the driver's word when it shows none."""
    library = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    _ask(library, "cuInit", 0)
    _ask(library, "cuDeviceGetCount", ctypes.byref(count))
    return [_card(library, ordinal) for ordinal in range(count.value)]


def look() -> dict[str, Any]:
    """What this container has, now."""
    seen: dict[str, Any] = {"at": time.time(), "cards": [], "error": None}
    try:
        seen["cards"] = cards()
    except OSError as error:
        seen["error"] = str(error)
    seen["nodes"] = minors(os.listdir("/dev"))
    seen["files"] = {name: (SLICE / name).read_text() for name in FILES if (SLICE / name).is_file()}
    return seen


def main(arguments: list[str]) -> int:
    """Look, then hold: as ``sleep``, so that a hundred witnesses need no memory to speak of."""
    verb, seconds = (arguments + ["look", "infinity"][len(arguments) :])[:2]
    if verb not in ("look", "hold"):
        print(f"usage: witness.py look | hold [SECONDS], not {verb!r}", file=sys.stderr)
        return 2
    print(json.dumps(look()), flush=True)
    if verb == "hold":
        os.execvp("sleep", ["sleep", seconds])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
