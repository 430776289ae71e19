# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated Ascend packages, each a shell head and a compressed archive in one ``.run`` file.

The same inputs give the same bytes, so that their digests can be pinned like a vendor's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from simulators.installers.runfile import fill_in
from xpubuild.archive import write_tarball

PAYLOAD = Path(__file__).resolve().parent / "payload"
UNIT = "npu-sim.service"
DRIVER, FIRMWARE, CANN = "25.0.rc1.1", "7.7.0.1.231", "8.1.RC1"


@dataclass(frozen=True)
class Pack:
    """One package. ``body`` is its part of the head, ``package`` its name there and in logs."""

    file: str
    package: str
    body: str
    version: str
    chip: str
    arch: str
    more: tuple[tuple[str, str], ...] = ()

    def write(self, out: Path, contents: Path) -> Path:
        """Write the package with everything below *contents* into *out*."""
        archive = _archive(contents)
        template = "".join(
            (PAYLOAD / name).read_text(encoding="utf-8") for name in ("common.sh", self.body)
        )
        values = {
            "PACKAGE": self.package,
            "VERSION": self.version,
            "CHIP": self.chip,
            "ARCH": self.arch,
            "DIGEST": hashlib.sha256(archive).hexdigest(),
            "FIRST_LINE": str(template.count("\n") + 1),
            **dict(self.more),
        }
        path = out / self.file
        path.write_bytes(fill_in(template, values).encode() + archive)
        path.chmod(0o755)
        return path


def _archive(contents: Path) -> bytes:
    with tempfile.NamedTemporaryFile() as packed:
        members = sorted(
            str(path.relative_to(contents)) for path in contents.rglob("*") if path.is_file()
        )
        write_tarball(Path(packed.name), contents, members)
        return Path(packed.name).read_bytes()


def driver(
    built: Path, out: Path, version: str = DRIVER, chip: str = "910b", arch: str = "x86_64"
) -> Path:
    """The driver's package; *built* is the simulated driver of the testbed's recipe ``ascend``."""
    name = f"Ascend-hdk-{chip}-npu-driver_{version}_linux-{arch}.run"
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        stage = Path(scratch)
        shutil.copytree(built, stage, dirs_exist_ok=True)
        shutil.copyfile(PAYLOAD / UNIT, stage / UNIT)
        shutil.copyfile(PAYLOAD / "load.sh", stage / "bin/npu-sim-load")
        (stage / "bin/npu-sim-load").chmod(0o755)
        return Pack(name, "driver", "driver.sh", version, chip, arch).write(out, stage)


def _with_a_note(pack: Pack, out: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        note = Path(scratch) / "SIMULATION"
        note.write_text(f"{pack.package} {pack.version}: a stand-in of flexai.xpu's tests\n")
        return pack.write(out, Path(scratch))


def firmware(
    out: Path, version: str = FIRMWARE, chip: str = "910b", belongs_to: str = DRIVER
) -> Path:
    """The firmware's package, which came with driver *belongs_to*."""
    name = f"Ascend-hdk-{chip}-npu-firmware_{version}.run"
    more = (("DRIVER", belongs_to),)
    return _with_a_note(Pack(name, "firmware", "firmware.sh", version, chip, "noarch", more), out)


def cann(
    part: str, out: Path, version: str = CANN, chip: str = "910b", arch: str = "x86_64"
) -> Path:
    """CANN's toolkit, kernels or nnal."""
    of = f"kernels-{chip}" if part == "kernels" else part
    name = f"Ascend-cann-{of}_{version}_linux-{arch}.run"
    more = (("PART", part),)
    return _with_a_note(Pack(name, part, "cann.sh", version, chip, arch, more), out)
