# SPDX-License-Identifier: GPL-3.0-or-later
"""Host roots for tests and benchmarks: a directory that looks, to the node path, like a host.

The programs below a root are small scripts that answer from files of the same root, so a test that
changes one file changes what every tool says about it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import yaml

DRIVER, TOOLKIT, XPU = "580.95.05", "1.17.8", "0.1.0"
FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = (FIXTURES / "containerd-config.toml").read_text()
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-operator-extensions",
)
# $R is the root that the script itself lies in.
SCRIPT = '#!/bin/sh\nR="${0%%/usr/bin/*}"\n%s\n'
NVIDIA_SMI = 'while read -r line; do echo "$line"; done < "$R/sim/nvidia-smi"'
NVIDIA_CTK = """case "$*" in
--version) read -r v < "$R/sim/nvidia-ctk"; echo "NVIDIA Container Toolkit CLI version $v" ;;
'cdi generate') cat "$R/sim/cdi" ;;
*) exit 1 ;;
esac"""
# An imported file replaces the CRI plugin's whole table: the drop-in, when there, is the answer.
CONTAINERD = """[ "$1" = --config ] && exec cat "$R/sim/base.toml"
D="$R/etc/containerd/conf.d/flexai-xpu.toml"
[ -e "$D" ] && exec cat "$D"
exec cat "$R/sim/base.toml\""""
CTR = 'cat "$R/sim/images"'


def put(root: Path, path: str, text: str, mode: int = 0o644) -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def package(name: str, version: str) -> str:
    return (
        f"Package: {name}\nStatus: install ok installed\nPriority: optional\n"
        f"Architecture: amd64\nVersion: {version}\nDescription: x\n more\n\n"
    )


def add_card(root: Path, bus: int) -> None:
    device = f"/sys/bus/pci/devices/0000:{bus:02x}:00.0"
    put(root, f"{device}/vendor", "0x10de\n")
    put(root, f"{device}/device", "0x20b0\n")
    put(root, f"{device}/class", "0x030200\n")


def bare(root: Path, cards: int = 2) -> Path:
    """A Debian 12 host with cards and containerd, as a site's own provisioning leaves it."""
    put(root, "/etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    put(root, "/var/lib/dpkg/status", package("bash", "5.2.15-2"))
    add_build_tools(root)
    put(root, "/etc/containerd/config.toml", CONFIG)
    put(root, "/sim/base.toml", (FIXTURES / "containerd-1.6-dump.toml").read_text())
    put(root, "/sim/images", "REF TYPE DIGEST SIZE PLATFORMS LABELS\n")
    put(root, "/usr/bin/containerd", SCRIPT % CONTAINERD, 0o755)
    put(root, "/usr/bin/ctr", SCRIPT % CTR, 0o755)
    for bus in range(1, cards + 1):
        add_card(root, bus)
    return root


def add_build_tools(root: Path) -> None:
    """What a kernel module is built with, for the kernel that runs here."""
    put(root, f"/lib/modules/{os.uname().release}/build/Makefile", "")
    for program in ("gcc", "make"):
        put(root, f"/usr/bin/{program}", "#!/bin/sh\n", 0o755)


def own_driver(root: Path, version: str = DRIVER) -> None:
    """Our record: this role installed what stands there."""
    record = {"version": version, "state": "installed"}
    put(root, "/var/lib/flexai-xpu/nvidia_driver.json", json.dumps(record), 0o600)


def install_driver(root: Path, version: str = DRIVER, cards: int = 2, *, ours: bool = True) -> None:
    if ours:
        own_driver(root, version)
    put(root, f"{LIBRARIES}/libcuda.so.{version}", "not really a library\n")
    link = root / LIBRARIES.lstrip("/") / "libcuda.so.1"
    link.unlink(missing_ok=True)
    link.symlink_to(f"libcuda.so.{version}")
    put(
        root,
        "/proc/driver/nvidia/version",
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Wed Oct  1 2025\n",
    )
    lines = "".join(f"{version}, GPU-{card:08d}\n" for card in range(cards))
    put(root, "/sim/nvidia-smi", lines)
    put(root, "/usr/bin/nvidia-smi", SCRIPT % NVIDIA_SMI, 0o755)
    put(root, "/usr/bin/nvidia-uninstall", "#!/bin/sh\n", 0o755)
    put(root, "/sim/cdi", f"cdiVersion: 0.5.0\nmounts: {LIBRARIES}/libcuda.so.{version}\n")


def install_toolkit(root: Path, version: str = TOOLKIT, *, ours: bool = True) -> None:
    if ours:
        record = json.dumps({"packages": sorted(PACKAGES)})
        put(root, "/var/lib/flexai-xpu/container_toolkit.json", record, 0o600)
    status = package("bash", "5.2.15-2")
    status += "".join(package(name, f"{version}-1") for name in PACKAGES)
    put(root, "/var/lib/dpkg/status", status)
    put(root, "/sim/nvidia-ctk", f"{version}\n")
    put(root, "/usr/bin/nvidia-ctk", SCRIPT % NVIDIA_CTK, 0o755)
    for program in ("nvidia-container-runtime", "nvidia-container-runtime.cdi"):
        put(root, f"/usr/bin/{program}", "#!/bin/sh\n", 0o755)


def enable_persistenced(root: Path) -> None:
    wants = "/etc/systemd/system/multi-user.target.wants/nvidia-persistenced.service"
    put(root, wants, "")


def xpu_tarball(path: Path, files: Mapping[str, str] | None = None) -> str:
    """A runtime tarball; its digest."""
    contents = files or {
        "lib/libcuda_direct.so": "library\n",
        "bin/gpu-monitor": "program\n",
        "VERSION": f"{XPU}\n",
    }
    with tarfile.open(path, "w") as archive:
        for name, text in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
    return digest(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def toolkit_tarball(path: Path, architecture: str = "amd64", version: str = TOOLKIT) -> str:
    inner = f"release-v{version}-stable/packages/ubuntu18.04/{architecture}"
    with tarfile.open(path, "w:gz") as archive:
        for name in (*PACKAGES, "nvidia-container-toolkit-dev"):
            member = tarfile.TarInfo(f"{inner}/{name}_{version}-1_{architecture}.deb")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"deb\n"))
    return digest(path)


def manifest(directory: Path) -> Path:
    """A manifest with the three artefacts of a node beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    installer = put(directory, "driver.run", "#!/bin/sh\n")
    files = {
        "nvidia-driver": (DRIVER, "run", installer.name, digest(installer)),
        "nvidia-container-toolkit": (
            TOOLKIT,
            "tarball",
            "toolkit.tar.gz",
            toolkit_tarball(directory / "toolkit.tar.gz"),
        ),
        "xpu-runtime": (XPU, "tarball", "xpu.tar", xpu_tarball(directory / "xpu.tar")),
    }
    entries = [
        {
            "name": name,
            "version": version,
            "arch": "x86_64",
            "kind": kind,
            "file": file,
            "source": file,
            "sha256": sha256,
        }
        for name, (version, kind, file, sha256) in files.items()
    ]
    text = yaml.safe_dump({"version": 1, "artefacts": entries})
    return put(directory, "manifest.yml", text)


def desired(sha256: str = "0" * 64, **images: str) -> dict[str, object]:
    """What the roles' defaults ask for, as `node_probe` gets it."""
    return {
        "min_free_mib": 1,
        "architectures": {
            name: ["x86_64"] for name in ("nvidia_driver", "container_toolkit", "xpu_runtime")
        },
        "nvidia_driver": {
            "version": DRIVER,
            "kernel_module_type": "",
            "persistenced": True,
            "allow_downgrade": False,
        },
        "container_toolkit": {
            "version": TOOLKIT,
            "accept_envvar_unprivileged": False,
            "accept_volume_mounts": True,
            "mode": "auto",
        },
        "container_runtime": {"engine": "auto"},
        "xpu_runtime": {"releases": {"x86_64": f"{XPU}-{sha256[:12]}"}},
        "xpu_agent": {"state": "auto", "version": "", "releases": {}},
        "images": images,
    }


def ready(root: Path, cards: int = 2) -> tuple[Path, dict[str, object]]:
    """A host on which everything is in force, made by the product's own writers; what it is."""
    from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_driver as driver
    from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
    from ansible_collections.flexai.xpu.plugins.modules import (
        container_toolkit,
        containerd_runtime,
        xpu_release,
    )

    bare(root, cards)
    install_driver(root, cards=cards)
    install_toolkit(root)
    enable_persistenced(root)
    host = Host(str(root))
    host.write(driver.MODPROBE_FILE, driver.MODPROBE_TEXT)
    toolkit = {
        "state": "present",
        "version": TOOLKIT,
        "method": "tarball",
        "tarball": None,
        "accept_envvar_unprivileged": False,
        "accept_volume_mounts": True,
        "mode": "auto",
    }
    container_toolkit.converge(host, toolkit, check=False)
    containerd_runtime.converge(host, {"state": "present"}, check=False)
    sha256 = xpu_tarball(root / "xpu.tar")
    release = {"state": "present", "version": XPU, "sha256": sha256, "tarball": "/xpu.tar"}
    xpu_release.converge(host, release, check=False)
    put(root, "/run/containerd/containerd.sock", "")
    return root, desired(sha256)
