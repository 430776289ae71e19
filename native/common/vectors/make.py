# SPDX-License-Identifier: Apache-2.0
"""Writes pages.json from a table of offsets, independent of the struct formats in xpu_pages.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE_BYTES, CARDS_AT, CARD_BYTES = 2112, 64, 128
HEADER = {"magic": (0, 4), "version": (4, 4), "epoch": (8, 4), "cards": (12, 4)}
CARD = {
    "memory_bytes": (48, 8),
    "tau_ns": (56, 8),
    "cores_percent": (64, 4),
    "mode": (68, 4),
    "weight": (72, 4),
    "trim_q16": (76, 4),
    "vid": (80, 4),
    "effective_q16": (84, 4),
    "overhead_bytes": (88, 8),
    "context_bytes": (96, 8),
    "flags": (104, 4),
    "frame_us": (108, 4),
    "window_start_us": (112, 4),
    "window_us": (116, 4),
}
UUIDS = [f"GPU-{index:08x}-1111-2222-3333-0123456789ab" for index in range(16)]


def card(uuid: str, **fields: int) -> dict[str, Any]:
    return {"uuid": uuid, **{name: fields.get(name, 0) for name in CARD}}


def full(index: int) -> dict[str, Any]:
    """A card in which every field has another value, so that a swapped pair shows."""
    return card(
        UUIDS[index],
        memory_bytes=(index + 1) << 34,
        tau_ns=1_000_000 + index,
        cores_percent=5 + index,
        mode=index % 5,
        weight=100 + index,
        trim_q16=65536 - index,
        vid=1000 + index,
        effective_q16=(index + 1) << 16,
        overhead_bytes=(index + 1) << 20,
        context_bytes=(index + 1) << 28,
        flags=index % 4,
        frame_us=100_000 + index,
        window_start_us=2_000 + index,
        window_us=3_000 + index,
    )


PAGES: list[tuple[str, int, list[dict[str, Any]]]] = [
    ("no cards", 0, []),
    (
        "the demo: 20 % and 3 GiB of one card",
        2,
        [
            card(
                "GPU-6a1c1ff0-8f6b-4a55-9d52-0c4c5bd0c001",
                memory_bytes=3 << 30,
                tau_ns=500_000_000,
                cores_percent=20,
                mode=1,
                trim_q16=65536,
                vid=7,
            )
        ],
    ),
    (
        "two cards with different limits, being written",
        0x01020305,
        [
            card(UUIDS[0], memory_bytes=1 << 30, tau_ns=20_000_000, cores_percent=100, mode=1),
            card(UUIDS[1], cores_percent=0, mode=0, weight=3, vid=1),
        ],
    ),
    ("sixteen cards, every field different", 0xFFFFFFFE, [full(index) for index in range(16)]),
]


def put(page: bytearray, base: int, at: tuple[int, int], value: int) -> None:
    offset, size = at
    page[base + offset : base + offset + size] = value.to_bytes(size, "little")


def encode(epoch: int, cards: list[dict[str, Any]]) -> bytes:
    page = bytearray(PAGE_BYTES)
    header = {"magic": 0x43555058, "version": 1, "epoch": epoch, "cards": len(cards)}
    for name, at in HEADER.items():
        put(page, 0, at, header[name])
    for index, entry in enumerate(cards):
        base = CARDS_AT + index * CARD_BYTES
        text = entry["uuid"].encode()
        page[base : base + len(text)] = text
        for name, at in CARD.items():
            put(page, base, at, entry[name])
    return bytes(page)


def document() -> dict[str, Any]:
    pages = [
        {
            "name": name,
            "epoch": epoch,
            "cards": cards,
            "bytes_hex": encode(epoch, cards).rstrip(b"\0").hex(),
        }
        for name, epoch, cards in PAGES
    ]
    return {"config_bytes": PAGE_BYTES, "ledger_bytes": 100416, "config": pages}


if __name__ == "__main__":
    text = json.dumps(document(), indent=1) + "\n"
    Path(sys.argv[1]).write_text(text) if len(sys.argv) > 1 else print(text, end="")
