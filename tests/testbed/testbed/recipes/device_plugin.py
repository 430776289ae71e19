# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's own device plugin (document 003): its programs from their Go module, and its chart.

A real site takes both from NVIDIA, as ``nvcr.io/nvidia/k8s-device-plugin`` and from NVIDIA's chart
repository; the chart here is the very one, packed from the module.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from xpubuild import archive, debian, latebound, oci
from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.recipes import images
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs, module_directory, zig_version

VERSION = "0.17.4"
UPSTREAM = "github.com/NVIDIA/k8s-device-plugin"
MODULE = REPOSITORY / "tests/testbed/modules/k8s-device-plugin"
CHART = "nvidia-device-plugin"
REFERENCE = f"nvcr.io/nvidia/k8s-device-plugin:v{VERSION}"
PROGRAMS = ("config-manager", "nvidia-device-plugin")
# Where upstream and what it builds on declare the functions that the driver brings, by module.
DECLARATIONS = (
    ("github.com/NVIDIA/go-nvml", "pkg/nvml/nvml.h"),
    (UPSTREAM, "internal/cuda/cuda.go"),
    (
        "github.com/NVIDIA/nvidia-container-toolkit",
        "internal/nvsandboxutils/nvsandboxutils.h",
    ),
    ("github.com/NVIDIA/nvidia-container-toolkit", "internal/cuda/cuda.go"),
)


def _build(out: Path) -> None:
    declarations = [
        (module_directory(MODULE, dependency) / path).read_text(encoding="utf-8")
        for dependency, path in DECLARATIONS
    ]
    go_build(
        MODULE,
        {out / name: f"{UPSTREAM}/cmd/{name}" for name in PROGRAMS},
        cgo=True,
        ldflags=f"-s -w -X {UPSTREAM}/internal/info.version=v{VERSION} {latebound.LDFLAGS}",
        env=latebound.compiler(latebound.scratch(out), declarations),
    )
    upstream = module_directory(MODULE, UPSTREAM) / "deployments/helm"
    members = [
        str(path.relative_to(upstream))
        for path in (upstream / CHART).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    archive.write_tarball(out / f"{CHART}-{VERSION}.tgz", upstream, members)


def build(cache: Cache) -> Path:
    """``nvidia-device-plugin``, ``config-manager`` and ``nvidia-device-plugin-<version>.tgz``."""
    inputs = go_inputs(
        MODULE,
        Path(__file__),
        linking=digest_file(Path(latebound.__file__)),
        packer=digest_file(Path(archive.__file__)),
        zig=zig_version(),
    )
    return cache.get(Recipe("k8s-device-plugin", inputs, _build))


def image(cache: Cache) -> Path:
    """``k8s-device-plugin.tar``, an OCI archive as NVIDIA names it, and ``image.json``."""
    programs = build(cache)
    base = debian.rootfs(cache, images.BASE_SUITE, images.BASE_PACKAGES)

    def pack(out: Path) -> None:
        files: dict[str, oci.Source] = {f"/usr/bin/{name}": programs / name for name in PROGRAMS}
        config = oci.Config(entrypoint=["/usr/bin/nvidia-device-plugin"])
        file = out / "k8s-device-plugin.tar"
        digest = oci.write_archive(file, REFERENCE, [base, files], config)
        described = {"name": REFERENCE, "file": file.name, "digest": digest}
        (out / "image.json").write_text(json.dumps(described) + "\n", encoding="utf-8")

    inputs = {
        "programs": programs.name,
        "base": base.parent.name,
        "packer": digest_file(Path(oci.__file__)),
        "reference": REFERENCE,
    }
    return cache.get(Recipe("image-k8s-device-plugin", inputs, pack))


def publish(cache: Cache, out: Path) -> Path:
    """A copy of the chart in *out*, under the name that it has in NVIDIA's repository."""
    name = f"{CHART}-{VERSION}.tgz"
    shutil.copyfile(build(cache) / name, out / name)
    return out / name
