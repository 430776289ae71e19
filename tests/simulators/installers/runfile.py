# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated ``NVIDIA-Linux-x86_64-<version>.run``: a shell head, then a compressed archive.

The archive holds the simulated driver, ``nvidia-installer`` and its ``.manifest``, whose lines say
``name class mode|link:target source``; the installer maps a class to a directory of the system.
The same inputs give the same bytes, so that its digest can be pinned like a vendor's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xpubuild.archive import write_tarball

from . import kernelmodule

SOURCES = Path(__file__).resolve().parent / "payload"
FLAVOURS = ("open", "proprietary")
# NVIDIA's installers prefer the open modules from this branch on.
FIRST_OPEN_BRANCH = 560


@dataclass(frozen=True)
class Entry:
    """One thing to install. ``place`` is an octal mode, or ``link:<target>``."""

    name: str
    kind: str
    place: str
    source: str = "-"

    def __str__(self) -> str:
        return f"{self.name} {self.kind} {self.place} {self.source}"


def driver_version(driver: Path) -> str:
    """The version that the simulated driver's libraries carry in their names."""
    found = sorted(path.name for path in (driver / "lib").glob("libcuda.so.*.*"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{driver}/lib holds {found or 'no libcuda.so.<version>'}; exactly one is needed"
        )
    return found[0].removeprefix("libcuda.so.")


def _libraries(driver: Path, version: str) -> Iterator[Entry]:
    for path in sorted((driver / "lib").glob(f"*.so.{version}")):
        base = path.name.removesuffix(f".{version}")
        yield Entry(path.name, "LIBRARY", "755", f"lib/{path.name}")
        yield Entry(f"{base}.1", "LIBRARY", f"link:{path.name}")
        yield Entry(base, "LIBRARY", f"link:{base}.1")


def _other_files(driver: Path) -> Iterator[Entry]:
    for path in sorted((driver / "bin").iterdir()):
        yield Entry(path.name, "UTILITY", "755", f"bin/{path.name}")
    data = driver / "share" / "nvidia-sim"
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        yield Entry(str(path.relative_to(data)), "DATA", "644", str(path.relative_to(driver)))
    for path in sorted(driver.rglob("*.service")):
        yield Entry(path.name, "UNIT", "644", str(path.relative_to(driver)))


def _modules(version: str) -> Iterator[Entry]:
    for flavour in FLAVOURS:
        for name in kernelmodule.nvidia_modules(version, flavour):
            yield Entry(name, f"MODULE-{flavour}", "644", f"kernel-{flavour}/{name}")


def entries(driver: Path, version: str) -> list[Entry]:
    """Everything the installer puts on a system, in its order."""
    return [
        *_libraries(driver, version),
        Entry("nvidia-installer", "UTILITY", "755", "nvidia-installer"),
        *_other_files(driver),
        *_modules(version),
    ]


def fill_in(text: str, values: dict[str, str]) -> str:
    """Replace every ``@NAME@``; one that is missing from *text* is a misspelling."""
    for name, value in values.items():
        if f"@{name}@" not in text:
            raise ValueError(f"@{name}@ does not occur in the template")
        text = text.replace(f"@{name}@", value)
    return text


def _default_flavour(version: str) -> str:
    return "open" if int(version.partition(".")[0]) >= FIRST_OPEN_BRANCH else "proprietary"


def _stage(driver: Path, version: str, stage: Path) -> None:
    listed = entries(driver, version)
    for entry in listed:
        if (driver / entry.source).is_file():
            target = stage / entry.source
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(driver / entry.source, target)
    for flavour in FLAVOURS:
        (stage / f"kernel-{flavour}").mkdir()
        for name, content in kernelmodule.nvidia_modules(version, flavour).items():
            (stage / f"kernel-{flavour}" / name).write_bytes(content)
    template = (SOURCES / "nvidia-installer.sh").read_text(encoding="utf-8")
    values = {"VERSION": version, "DEFAULT_MODULE_TYPE": _default_flavour(version)}
    installer = stage / "nvidia-installer"
    installer.write_text(fill_in(template, values), encoding="utf-8")
    installer.chmod(0o755)
    (stage / ".manifest").write_text("".join(f"{entry}\n" for entry in listed), encoding="utf-8")


def _archive(stage: Path) -> bytes:
    with tempfile.NamedTemporaryFile() as packed:
        members = [str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()]
        write_tarball(Path(packed.name), stage, members)
        return Path(packed.name).read_bytes()


def _head(version: str, archive: bytes) -> bytes:
    template = (SOURCES / "head.sh").read_text(encoding="utf-8")
    values = {
        "VERSION": version,
        "DIGEST": hashlib.sha256(archive).hexdigest(),
        "FIRST_LINE": str(template.count("\n") + 1),
    }
    return fill_in(template, values).encode()


def pack(driver: Path, out: Path) -> Path:
    """Write the installer of the simulated driver in *driver* into *out*."""
    version = driver_version(driver)
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        stage = Path(scratch)
        _stage(driver, version, stage)
        archive = _archive(stage)
    path = out / f"NVIDIA-Linux-x86_64-{version}.run"
    path.write_bytes(_head(version, archive) + archive)
    os.chmod(path, 0o755)
    return path
