# SPDX-License-Identifier: Apache-2.0
"""The container images of the project: OCI archives made from Debian packages and our programs.

They share one Debian layer, which an engine keeps once. Python (all of it: the workload uses
ctypes) is in it for the workload's sake: a second layer without it would weigh more than it saves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import debian, oci
from ..cache import Cache, Recipe, digest_file, digest_tree
from ..toolchain import REPOSITORY
from . import client_update, cluster, runtime, syshax, tools, volcano, webhook

TAG = "v1.0"
REGISTRY = "docker.io/library"
BASE_SUITE = "bookworm"
BASE_PACKAGES = ("python3",)
BASE_PYTHON = "3.11"  # bookworm's
SYSHAX_SITE = "/opt/syshax"
WORKLOAD = REPOSITORY / "tests/e2e/workload"


@dataclass(frozen=True)
class Image:
    """One image: its files over the Debian layer, or alone where nothing is loaded at run time."""

    name: str
    files: Mapping[str, oci.Source]
    config: oci.Config
    on_debian: bool = True

    @property
    def reference(self) -> str:
        return f"{REGISTRY}/{self.name}:{TAG}"

    @property
    def archive(self) -> str:
        return f"{self.name}_{TAG}.tar"


def device_plugin(programs: Path) -> Image:
    """Loads the host's NVML, so it needs a glibc."""
    return Image(
        "gpu-device-plugin",
        {"/usr/bin/gpu-device-plugin": programs / "gpu-device-plugin"},
        oci.Config(entrypoint=["/usr/bin/gpu-device-plugin"]),
    )


def admission_webhook(program: Path) -> Image:
    """Static and alone. The number, not a name: Kubernetes checks by it that nobody is root."""
    return Image(
        "xpu-webhook",
        {"/xpu-webhook": program / "xpu-webhook"},
        oci.Config(entrypoint=["/xpu-webhook"], user="65532:65532"),
        on_debian=False,
    )


def cuda_client_update(program: Path, release: Path) -> Image:
    """The program and what it installs, the same tarball that role xpu_runtime does."""
    return Image(
        "cuda-client-update",
        {
            "/cuda-client-update": program / "cuda-client-update",
            "/release/xpu-runtime.tar.gz": release,
        },
        oci.Config(entrypoint=["/cuda-client-update"]),
        on_debian=False,
    )


def exporter(program: Path) -> Image:
    """Static and alone. The number is that of the group which may ask gpu-device-plugin."""
    return Image(
        "xpu-exporter",
        {"/xpu-exporter": program},
        oci.Config(entrypoint=["/xpu-exporter"], user="10001:10001"),
        on_debian=False,
    )


def scheduler(built: Path) -> Image:
    """Volcano's scheduler with our plugin; the chart's arguments follow the entry point's."""
    return Image(
        "vc-scheduler",
        {
            "/vc-scheduler": built / "vc-scheduler",
            "/plugins/huawei-xpu.so": built / "plugins/huawei-xpu.so",
        },
        oci.Config(entrypoint=["/vc-scheduler", "--plugins-dir=/plugins"]),
    )


def controller_manager(built: Path) -> Image:
    """Volcano's controller manager, static and alone; it keeps a log socket in /tmp."""
    return Image(
        "vc-controller-manager",
        {
            "/vc-controller-manager": built / "vc-controller-manager",
            "/tmp": oci.Directory(0o1777),
        },
        oci.Config(entrypoint=["/vc-controller-manager"]),
        on_debian=False,
    )


def workload(programs: Sequence[Path]) -> Image:
    """What the demo runs on a slice. It asks for every card by its environment, as CUDA images do,
    so that a slice that isn't enforced shows."""
    return Image(
        "xpu-workload",
        {f"/workload/{path.name}": path for path in programs},
        oci.Config(
            cmd=["/usr/bin/python3"],
            env={
                "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
                "NVIDIA_VISIBLE_DEVICES": "all",
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONUNBUFFERED": "1",
            },
            working_dir="/workload",
        ),
    )


def conductor(built: Path) -> Image:
    """sysHAX's conductor: its packages, the command ``syshax``, and nobody to run it."""
    packages = [path for path in (built / "site").rglob("*") if path.is_file()]
    return Image(
        "syshax-conductor",
        {
            "/usr/local/bin/syshax": built / "syshax",
            **{f"{SYSHAX_SITE}/{p.relative_to(built / 'site')}": p for p in packages},
        },
        oci.Config(
            entrypoint=["/usr/local/bin/syshax"],
            cmd=["run"],
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": SYSHAX_SITE,
                "PYTHONUNBUFFERED": "1",
                "SYSHAX_CONFIG": "/etc/syshax/config.yaml",
            },
            user="65532:65532",
        ),
    )


def _archive(cache: Cache, base: Path, image: Image) -> Path:
    """The image's archive and digest, cached for itself: one program changes, the others stay."""

    def build(out: Path) -> None:
        layers: list[oci.Layer] = [base] if image.on_debian else []
        digest = oci.write_archive(
            out / image.archive, image.reference, [*layers, image.files], image.config
        )
        entry = {"name": image.reference, "file": image.archive, "digest": digest}
        (out / "image.json").write_text(json.dumps(entry) + "\n", encoding="utf-8")

    inputs = {
        "config": json.dumps(image.config.document(), sort_keys=True),
        "base": base.parent.name if image.on_debian else "",
        "packer": digest_file(Path(oci.__file__)),
        "files": json.dumps({path: _identity(what) for path, what in image.files.items()}),
        "reference": image.reference,
    }
    return cache.get(Recipe(f"image-{image.name}", inputs, build))


def _identity(source: oci.Source) -> str:
    return digest_tree([source], source.parent) if isinstance(source, Path) else repr(source)


def _collect(archives: Sequence[Path]) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        listed = []
        for directory in archives:
            entry = json.loads((directory / "image.json").read_text(encoding="utf-8"))
            (out / entry["file"]).hardlink_to(directory / entry["file"])
            listed.append(entry)
        (out / "images.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")

    return build


def build(cache: Cache) -> Path:
    """``<name>_<tag>.tar`` of each image, and ``images.json``: ``[{name, file, digest}]``."""
    base = debian.rootfs(cache, BASE_SUITE, BASE_PACKAGES)
    programs, scheduling = cluster.build(cache), volcano.build(cache)
    images = [
        device_plugin(programs),
        admission_webhook(webhook.build(cache)),
        cuda_client_update(client_update.build(cache), runtime.build(cache)),
        exporter(tools.build(cache, tools.EXPORTER)),
        scheduler(scheduling),
        controller_manager(scheduling),
        workload(sorted(WORKLOAD.glob("*.py"))),
        conductor(syshax.installed(cache, BASE_PYTHON)),
    ]
    archives = [_archive(cache, base, image) for image in images]
    inputs = {image.name: path.name for image, path in zip(images, archives, strict=True)}
    recipe = digest_file(Path(__file__))
    return cache.get(Recipe("images", {**inputs, "recipe": recipe}, _collect(archives)))
