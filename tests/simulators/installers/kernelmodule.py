# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for kernel modules: objects with nothing in them but what ``modinfo`` reads."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _STRTAB = 1, 3
_NAMES = b"\0.modinfo\0.shstrtab\0"


def module_object(fields: Sequence[tuple[str, str]]) -> bytes:
    """A relocatable ELF object whose section ``.modinfo`` holds *fields*.

    ``modinfo``, ``depmod`` and every probe built on them read it; a kernel refuses to load it.
    """
    info = b"".join(f"{key}={value}\0".encode() for key, value in fields)
    info_at = _HEADER.size
    names_at = info_at + len(info)
    table_at = -(-(names_at + len(_NAMES)) // 8) * 8
    header = _HEADER.pack(
        _IDENT, _RELOCATABLE, _X86_64, 1, 0, 0, table_at, 0,
        _HEADER.size, 0, 0, _SECTION.size, 3, 2,
    )  # fmt: skip
    sections = (
        _section(b"", 0, 0, 0),
        _section(b".modinfo", _PROGBITS, info_at, len(info)),
        _section(b".shstrtab", _STRTAB, names_at, len(_NAMES)),
    )
    body = header + info + _NAMES
    return body.ljust(table_at, b"\0") + b"".join(sections)


def _section(name: bytes, kind: int, offset: int, size: int) -> bytes:
    position = _NAMES.index(name + b"\0") if name else 0
    return _SECTION.pack(position, kind, 0, 0, offset, size, 0, 0, 1, 0)


def nvidia_modules(version: str, flavour: str) -> dict[str, bytes]:
    """File name → content of the driver's modules; ``flavour`` is ``open`` or ``proprietary``."""
    licence = {"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}[flavour]
    depends = {"nvidia": "", "nvidia-uvm": "nvidia", "nvidia-modeset": "nvidia"}
    return {
        f"{name}.ko": module_object(
            [
                ("license", licence),
                ("version", version),
                ("description", "simulated by flexai.xpu; drives no hardware"),
                ("depends", needed),
                ("name", name.replace("-", "_")),
            ]
        )
        for name, needed in depends.items()
    }
