#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints corpus.json: for each fuzz target inputs by name, as hex without trailing zeros.

What a fuzzer found is added here by hand, so that it is replayed for ever."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import xpu_pages
from xpu_pages import CardConfig

CARD = CardConfig("GPU-51000000-0000-4000-8000-000000000000", 3 << 30, cores_percent=20)
CARDS_AT, CARD_AT, SLOTS_AT = 12, 64, 2112


def patched(page: bytes, at: int, value: bytes) -> bytes:
    return page[:at] + value + page[at + len(value) :]


def config_pages() -> dict[str, bytes]:
    good = xpu_pages.pack_config([CARD])
    return {
        "good": good,
        "full": xpu_pages.pack_config([CARD] * xpu_pages.MAX_CARDS, 4),
        "empty": b"",
        "short": good[:40],
        "half": good[: CARD_AT + 60],
        "odd epoch": xpu_pages.pack_config([CARD], 5),
        "too many cards": patched(good, CARDS_AT, struct.pack("<I", 17)),
        "most cards": patched(good, CARDS_AT, b"\xff" * 4),
        "uuid without end": patched(good, CARD_AT, b"x" * 48),
        "no uuid": patched(good, CARD_AT, b"\0" * 48),
        "101 percent": patched(good, CARD_AT + 64, struct.pack("<I", 101)),
        "unknown mode": patched(good, CARD_AT + 68, struct.pack("<I", 5)),
        "largest figures": patched(good, CARD_AT + 48, b"\xff" * 16),
        "window beyond frame": patched(good, CARD_AT + 108, struct.pack("<3I", 10, 5, 0xFFFFFFFF)),
        "other version": patched(good, 4, b"\x02"),
    }


def ledger_pages() -> dict[str, bytes]:
    good = xpu_pages.empty_ledger()
    slot = struct.pack("<QII16Q16Q", 1, 1, 0, *[1 << 40] * 16, *[7] * 16)
    every = b"".join(slot.ljust(384, b"\0") for _ in range(8))
    wild = struct.pack("<QII16Q", 0xFFFFFFFFFFFFFFFF, 1, 0, *[0xFFFFFFFFFFFFFFFF] * 16)
    used = patched(good, 8, struct.pack("<I", 0xFFFFFFFF))
    return {
        "good": good,
        "empty": b"",
        "more slots than there are": used,
        "eight dead slots": patched(patched(good, 8, b"\x08"), SLOTS_AT, every),
        "free slots that hold": patched(used, SLOTS_AT + 16, b"\xff" * 128),
        "sum beyond 64 bits": patched(patched(used, SLOTS_AT, wild), SLOTS_AT + 384, wild),
        "latest TAT": patched(good, CARD_AT, struct.pack("<q", (1 << 63) - 1)),
        "earliest TAT": patched(good, CARD_AT, struct.pack("<q", -(1 << 63))),
        "other magic": patched(good, 0, b"\0"),
    }


def upstream_files() -> dict[str, bytes]:
    limits, ids = b"UsedMem:3072\nUsedCores:20\n", f"{CARD.uuid}-0\n".encode()
    return {
        "good": limits + b"\0" + ids,
        "no line end": limits[:-1] + b"\0" + ids[:-1],
        "no ids": limits,
        "nothing": b"",
        "only a NUL": b"\0",
        "twice the same card": limits + b"\0" + ids + ids,
        "seventeen cards": limits + b"\0" + b"".join(b"GPU-%d-0\n" % n for n in range(17)),
        "longest uuid": limits + b"\0" + b"u" * 47 + b"-4294967295\n",
        "uuid too long": limits + b"\0" + b"u" * 48 + b"-1\n",
        "number too large": b"UsedMem:99999999999999999999\nUsedCores:20\n\0" + ids,
        "101 percent": b"UsedMem:1\nUsedCores:101\n\0" + ids,
        "no number": b"UsedMem:\nUsedCores:\n\0" + ids,
        "sign": b"UsedMem:-1\nUsedCores:+2\n\0" + ids,
        "only a hyphen": limits + b"\0-\n--1\n",
        "carriage returns": b"UsedMem:1\r\nUsedCores:2\r\n\0" + ids,
        "uuid that begins with a NUL": limits + b"\0\0UU-1\n",
        "empty lines": b"\n\n\0\n\n",
    }


def main() -> int:
    targets = {
        "config_page": config_pages(),
        "ledger_page": ledger_pages(),
        "upstream_files": upstream_files(),
    }
    short = {
        target: {name: data.rstrip(b"\0").hex() if target != "upstream_files" else data.hex()
                 for name, data in inputs.items()}
        for target, inputs in targets.items()
    }  # fmt: skip
    print(json.dumps(short, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
