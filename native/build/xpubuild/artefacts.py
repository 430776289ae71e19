# SPDX-License-Identifier: Apache-2.0
"""The artefact manifest: name, version, architecture, source, digest and licence of each file.

The format is fixed in ``docs/interfaces.md`` section 2; roles read it on the controller and check
every digest again on the host that uses the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from .cache import Cache, digest_file, place
from .recipes import charts, cluster, helm, images, runtime, syshax, volcano
from .toolchain import collection_version

# What runs inside a container comes for both; images and helm are x86_64's only.
ARCHITECTURES = ("x86_64", "aarch64")
OWN_LICENCE = "Apache-2.0; built from native/ of flexai.xpu"


@dataclass(frozen=True)
class Artefact:
    """One manifest entry; ``path`` is where the built file is, which the manifest does not say."""

    name: str
    version: str
    arch: str
    kind: str
    path: Path
    licence: str
    image: str | None = None
    image_digest: str | None = None

    def entry(self) -> dict[str, str]:
        """The manifest's form, with a source relative to the manifest."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        del fields["path"]
        return {
            **fields,
            "file": self.path.name,
            "source": self.path.name,
            "sha256": digest_file(self.path),
        }


def _xpu_runtime(cache: Cache, arch: str) -> Artefact:
    path = runtime.build(cache, arch)
    return Artefact("xpu-runtime", collection_version(), arch, "tarball", path, OWN_LICENCE)


def _charts(cache: Cache) -> list[Artefact]:
    ours = charts.build(cache)
    gpupool = next(ours.glob(f"{charts.NAME}-*.tgz"))
    second = next(ours.glob(f"{charts.SECOND}-*.tgz"))
    upstream = next((volcano.build(cache) / "chart").glob("volcano-*.tgz"))
    return [
        Artefact(name, path.stem.removeprefix(f"{name}-"), "noarch", "chart", path, licence)
        for name, path, licence in (
            (charts.NAME, gpupool, OWN_LICENCE),
            (charts.SECOND, second, OWN_LICENCE),
            ("volcano", upstream, "Apache-2.0; Volcano's own chart, from its Go module"),
        )
    ]


def _helm(cache: Cache) -> Artefact:
    path = helm.build(cache) / "helm"
    return Artefact(
        "helm", helm.VERSION, "x86_64", "binary", path, "Apache-2.0; built from its module"
    )


def _xpu_agent(cache: Cache) -> Artefact:
    """The device plugin's program once more, for hosts without Kubernetes; one file, for x86_64."""
    path = cluster.build(cache) / "gpu-device-plugin"
    return Artefact("xpu-agent", collection_version(), "x86_64", "binary", path, OWN_LICENCE)


def _syshax(cache: Cache, arch: str) -> Artefact:
    """The conductor, and the wheels that it imports."""
    path = syshax.bundle(cache, arch)
    licence = "Apache-2.0; wheels of PyPI under their own licences"
    return Artefact("syshax", collection_version(), arch, "tarball", path, licence)


def _images(cache: Cache) -> list[Artefact]:
    built = images.build(cache)
    listed = json.loads((built / "images.json").read_text(encoding="utf-8"))
    return [
        Artefact(
            name=image["name"].rpartition("/")[2].partition(":")[0],
            version=image["name"].rpartition(":")[2],
            arch="x86_64",
            kind="image",
            path=built / image["file"],
            licence="Debian packages under their own licences; programs Apache-2.0",
            image=image["name"],
            image_digest=image["digest"],
        )
        for image in listed
    ]


def native(cache: Cache) -> list[Artefact]:
    """What this project builds itself.

    Images come first: they alone need root and packages of the machine, and who lacks those shall
    hear it at once, not after ten minutes of compiling.
    """
    runtimes = [_xpu_runtime(cache, arch) for arch in ARCHITECTURES]
    conductors = [_syshax(cache, arch) for arch in ARCHITECTURES]
    programs = [*runtimes, _xpu_agent(cache), _helm(cache), *conductors]
    return [*_images(cache), *programs, *_charts(cache)]


def publish(entries: Sequence[Artefact], out: Path) -> Path:
    """Fill *out* with the files and their manifest; files of an earlier manifest are removed."""
    out.mkdir(parents=True, exist_ok=True)
    for artefact in entries:
        place(artefact.path, out / artefact.path.name)
    manifest = out / "manifest.yml"
    document = {"version": 1, "artefacts": [artefact.entry() for artefact in entries]}
    scratch = out / ".manifest.yml.new"
    scratch.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    scratch.rename(manifest)
    wanted = {artefact.path.name for artefact in entries} | {manifest.name}
    for stale in out.iterdir():
        if (
            stale.is_file()
            and stale.name not in wanted
            and not stale.name.startswith("flexai-xpu-")
        ):
            stale.unlink()
    return manifest
