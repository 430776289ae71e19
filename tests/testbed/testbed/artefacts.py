# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m testbed.artefacts --out DIR``: everything the demo installs, with its manifest.

A real site's manifest names the vendor's own files; here stand-ins for NVIDIA's closed installers
join what the project builds itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from xpubuild import artefacts
from xpubuild.cache import Cache
from xpubuild.toolchain import ToolchainError

from .recipes import vendor

# The toolkit's artefact, by what its tarball holds.
TOOLKIT = {"deb": "nvidia-container-toolkit", "rpm": "nvidia-container-toolkit-rpm"}
LICENCE = "stand-in for the vendor's file, made by tests/simulators"


def simulated_vendor(cache: Cache) -> list[artefacts.Artefact]:
    """The simulated installers of driver and CUDA, and the toolkit's release tarballs."""
    built = vendor.build(cache)
    entries = [
        artefacts.Artefact(
            "nvidia-driver", path.stem.rpartition("-")[2], "x86_64", "run", path, LICENCE
        )
        for path in sorted(built.glob("NVIDIA-Linux-x86_64-*.run"))
    ]
    entries += [
        artefacts.Artefact("cuda-toolkit", path.name.split("_")[1], "x86_64", "run", path, LICENCE)
        for path in sorted(built.glob("cuda_*_linux.run"))
    ]
    for path in sorted(built.glob("nvidia-container-toolkit_*.tar.gz")):
        _name, version, form, _arch = path.name.split("_", 3)
        entries.append(
            artefacts.Artefact(TOOLKIT[form], version, "x86_64", "tarball", path, LICENCE)
        )
    return entries


def publish_all(out: Path) -> int:
    """Build (from the cache where possible) and publish every artefact; returns how many."""
    cache = Cache()
    entries = artefacts.native(cache) + simulated_vendor(cache)
    artefacts.publish(entries, out)
    return len(entries)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="directory to fill")
def main(out: Path) -> None:
    """Everything the demo installs, with its manifest."""
    try:
        click.echo(f"{publish_all(out)} artefacts in {out}")
    except (FileNotFoundError, ToolchainError) as error:
        click.echo(f"artefacts: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
