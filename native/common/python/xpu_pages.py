# SPDX-License-Identifier: Apache-2.0
"""The pages of xpu/pages.h for Python: tests and benchmarks write grants and read ledgers with it.

Layouts are struct formats that mirror the header; test_pages.py holds them against the vectors,
and the vectors against the C++ and Go readers. Product code does not import this module.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG_MAGIC = 0x43555058
LEDGER_MAGIC = 0x4C555058
VERSION = 1
MAX_CARDS = 16
MAX_PROCESSES = 256
PAUSED, OVERSUBSCRIBE = 0x1, 0x2
MODES = {"none": 0, "hard": 1, "elastic": 2, "fixed-share": 3, "priority": 4}

_HEADER = struct.Struct("<4I48x")
_CARD = struct.Struct("<48sQQ6IQQ4I8x")
_LEDGER_HEADER = struct.Struct("<3I52x")
_CARD_LEDGER = struct.Struct("<q5Q80x")
_SLOT = struct.Struct(f"<QII{MAX_CARDS}Q{MAX_CARDS}Q112x")
_EPOCH_OFFSET = 8
_SLOTS_OFFSET = _LEDGER_HEADER.size + MAX_CARDS * _CARD_LEDGER.size
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux

CONFIG_BYTES = _HEADER.size + MAX_CARDS * _CARD.size
LEDGER_BYTES = _SLOTS_OFFSET + MAX_PROCESSES * _SLOT.size


@dataclass(frozen=True)
class CardConfig:
    """What one card grants; field names and units as in ``struct xpu_card_config``."""

    uuid: str
    memory_bytes: int = 0
    tau_ns: int = 500_000_000
    cores_percent: int = 0
    mode: str = "hard"
    weight: int = 0
    trim_q16: int = 0
    vid: int = 0
    effective_q16: int = 0
    overhead_bytes: int = 0
    context_bytes: int = 0
    flags: int = 0
    frame_us: int = 0
    window_start_us: int = 0
    window_us: int = 0

    def pack(self) -> bytes:
        return _CARD.pack(
            self.uuid.encode(), self.memory_bytes, self.tau_ns, self.cores_percent,
            MODES[self.mode], self.weight, self.trim_q16, self.vid, self.effective_q16,
            self.overhead_bytes, self.context_bytes, self.flags, self.frame_us,
            self.window_start_us, self.window_us,
        )  # fmt: skip


@dataclass(frozen=True)
class CardLedger:
    """One card of a ledger page, as ``struct xpu_card_ledger``."""

    tat_ns: int
    charged_ns: int
    throttled_ns: int
    memory_bytes: int
    denied: int
    launches: int


@dataclass(frozen=True)
class ProcessSlot:
    """One occupied slot of a ledger page."""

    index: int
    owner: int
    pid: int
    memory_bytes: tuple[int, ...]
    charged_ns: tuple[int, ...]


@dataclass(frozen=True)
class Ledger:
    """A ledger page at one moment. Counters are read one by one, so sums may be a little apart."""

    cards: tuple[CardLedger, ...]
    processes: tuple[ProcessSlot, ...] = field(default=())


def pack_config(cards: Sequence[CardConfig], epoch: int = 0) -> bytes:
    """The bytes of a config page."""
    if len(cards) > MAX_CARDS:
        raise ValueError(f"a config page holds {MAX_CARDS} cards, {len(cards)} were given")
    entries = b"".join(card.pack() for card in cards)
    header = _HEADER.pack(CONFIG_MAGIC, VERSION, epoch, len(cards))
    return header + entries.ljust(MAX_CARDS * _CARD.size, b"\0")


def empty_ledger() -> bytes:
    """The bytes of a ledger page in which nothing has happened yet."""
    return _LEDGER_HEADER.pack(LEDGER_MAGIC, VERSION, 0).ljust(LEDGER_BYTES, b"\0")


def write_slice(directory: Path, cards: Sequence[CardConfig]) -> tuple[Path, Path]:
    """A fresh pair of pages in *directory*, as the node agent makes one: (config, ledger)."""
    config, ledger = directory / "config.page", directory / "ledger.page"
    config.write_bytes(pack_config(cards))
    ledger.write_bytes(empty_ledger())
    return config, ledger


def change_config(path: Path, cards: Sequence[CardConfig]) -> None:
    """Change a page that others have mapped: in place, with the epoch odd meanwhile (seqlock)."""
    with path.open("r+b", buffering=0) as page:
        page.seek(_EPOCH_OFFSET)
        epoch = int.from_bytes(page.read(4), "little")
        page.seek(_EPOCH_OFFSET)
        page.write(struct.pack("<I", epoch + 1))
        body = pack_config(cards, epoch + 1)
        page.seek(_EPOCH_OFFSET + 4)
        page.write(body[_EPOCH_OFFSET + 4 :])
        page.seek(_EPOCH_OFFSET)
        page.write(struct.pack("<I", epoch + 2))


def read_config(path: Path) -> tuple[CardConfig, ...]:
    """The grants of the config page at *path*, read until no writer was at work."""
    names = {number: name for name, number in MODES.items()}
    while True:
        data, again = path.read_bytes(), path.read_bytes()
        magic, version, epoch, cards = _HEADER.unpack_from(data)
        if (magic, version) != (CONFIG_MAGIC, VERSION):
            raise ValueError(
                f"not a config page of version {VERSION}: {magic:#x} version {version}"
            )
        if data == again and epoch % 2 == 0:
            break
    rows = (_CARD.unpack_from(data, _HEADER.size + i * _CARD.size) for i in range(cards))
    return tuple(_grant(row, names[row[4]]) for row in rows)


def _grant(row: tuple[Any, ...], mode: str) -> CardConfig:
    uuid = row[0].rstrip(b"\0").decode()
    return CardConfig(uuid, row[1], row[2], row[3], mode, *row[5:])


def unpack_ledger(data: bytes) -> Ledger:
    """Read a ledger page; raises ValueError naming what is wrong with it."""
    if len(data) < LEDGER_BYTES:
        raise ValueError(f"a ledger page has {LEDGER_BYTES} bytes, this one {len(data)}")
    magic, version, _ = _LEDGER_HEADER.unpack_from(data)
    if (magic, version) != (LEDGER_MAGIC, VERSION):
        raise ValueError(f"not a ledger page of version {VERSION}: {magic:#x} version {version}")
    at = _LEDGER_HEADER.size
    cards = tuple(
        CardLedger(*_CARD_LEDGER.unpack_from(data, at + index * _CARD_LEDGER.size))
        for index in range(MAX_CARDS)
    )
    at += MAX_CARDS * _CARD_LEDGER.size
    slots = (
        (index, _SLOT.unpack_from(data, at + index * _SLOT.size)) for index in range(MAX_PROCESSES)
    )
    processes = tuple(
        ProcessSlot(index, row[0], row[1], row[3 : 3 + MAX_CARDS], row[3 + MAX_CARDS :])
        for index, row in slots
        if row[0]
    )
    return Ledger(cards, processes)


def read_ledger(path: Path) -> Ledger:
    """The ledger page at *path* as it is now."""
    return unpack_ledger(path.read_bytes())


def living(path: Path) -> tuple[ProcessSlot, ...]:
    """The slots whose owners live, as every reader of a ledger has to tell them from what a killed
    process, or the program before an exec, left for the next claim to clear."""

    def owned(page: int, slot: ProcessSlot) -> bool:
        asked = _FLOCK.pack(
            fcntl.F_WRLCK, os.SEEK_SET, _SLOTS_OFFSET + slot.index * _SLOT.size, 1, 0
        )
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(page, fcntl.F_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)

    with path.open("r+b") as page:
        return tuple(s for s in read_ledger(path).processes if owned(page.fileno(), s))
