# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign owners on a host: per owner what is decided, and that what is theirs stays as it is."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _owners as owners
from ansible_collections.flexai.xpu.plugins.module_utils import _packages as packages
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils import _site as site
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import (
    container_toolkit,
    docker_runtime,
    nvidia_driver,
)
from ansible_collections.flexai.xpu.plugins.modules.node_probe import probe

from . import hostroot
from .test_writers import DRIVER, Programs, host_with, snapshot

DRIVER_DEB = hostroot.package("nvidia-driver-580", "3:580.95.05-0ubuntu1")
OTHER_DEB = hostroot.package("nvidia-driver-550", "550.54.14-0ubuntu1")
TOOLKIT = {
    "version": hostroot.TOOLKIT,
    "tarball": "/toolkit.tar.gz",
    "method": "tarball",
    "accept_envvar_unprivileged": False,
    "accept_volume_mounts": True,
    "mode": "auto",
}


def add_packages(root: Path, text: str) -> None:
    with (root / "var/lib/dpkg/status").open("a") as stream:
        stream.write(text)


def foreign_driver(version: str) -> Callable[[Path], None]:
    return lambda root: hostroot.install_driver(root, version, ours=False)


def packaged_driver(version: str, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        hostroot.install_driver(root, version, ours=False)
        (root / "usr/bin/nvidia-uninstall").unlink()
        add_packages(root, text)

    return change


def mixed_driver(root: Path) -> None:
    hostroot.install_driver(root)
    add_packages(root, DRIVER_DEB)


def foreign_toolkit(version: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in hostroot.PACKAGES[:-1]:
            add_packages(root, hostroot.package(name, f"{version}-1"))

    return change


def containerd_runtime(program: str) -> Callable[[Path], None]:
    table = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options'

    def change(root: Path) -> None:
        text = f'\n[{table}]\n  BinaryName = "{program}"\n'
        with (root / "etc/containerd/config.toml").open("a") as stream:
            stream.write(text)

    return change


def port_8082(program: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        line = "0: 00000000:1F92 00000000:0000 0A 0:0 00:0 0 0 0 4711 1 0 100 0 0 10 0"
        hostroot.put(root, "/proc/net/tcp", f"  sl  local_address\n   {line}\n")
        hostroot.put(root, "/proc/77/comm", f"{program}\n")
        (root / "proc/77/fd").mkdir()
        (root / "proc/77/fd/3").symlink_to("socket:[4711]")

    return change


# What stands there → component, action, stance, owner, a part of the reason.
OWNERS: dict[str, tuple[Callable[[Path], Any], tuple[str, str, str, str], str]] = {
    "gpu-operator's driver container": (
        lambda root: hostroot.put(root, "/run/nvidia/driver/usr/bin/nvidia-smi", ""),
        ("nvidia_driver", "blocked", "refuse", "gpu-operator"),
        "set driver.enabled=false in its ClusterPolicy",
    ),
    "gpu-operator's toolkit": (
        lambda root: hostroot.put(
            root, "/usr/local/nvidia/toolkit/nvidia-container-runtime", "", 0o755
        ),
        ("container_toolkit", "install", "coexist", "gpu-operator"),
        "ours stands beside it under /usr/bin",
    ),
    "packages of the wanted driver": (
        packaged_driver(hostroot.DRIVER, DRIVER_DEB),
        ("nvidia_driver", "ok", "adopt", "packages of dpkg"),
        "driver 580.95.05 belongs to the package manager (nvidia-driver-580)",
    ),
    "packages of another driver": (
        packaged_driver("550.54.14", OTHER_DEB),
        ("nvidia_driver", "blocked", "refuse", "packages of dpkg"),
        "set nvidia_driver_version: 550.54.14 to use it as it is, or remove these packages",
    ),
    "packages of a newer driver": (
        packaged_driver("590.10.01", hostroot.package("cuda-drivers", "590.10.01-1")),
        ("nvidia_driver", "blocked", "refuse", "packages of dpkg"),
        "set nvidia_driver_version: 590.10.01",
    ),
    "packages and a .run file": (
        mixed_driver,
        ("nvidia_driver", "blocked", "refuse", "packages of dpkg and a .run file"),
        "installed twice, by packages (nvidia-driver-580) and by a .run file",
    ),
    "somebody's .run file of the wanted driver": (
        foreign_driver(hostroot.DRIVER),
        ("nvidia_driver", "ok", "adopt", "a .run file"),
        "was not installed by flexai.xpu and is used as it is",
    ),
    "somebody's .run file of another driver": (
        foreign_driver("575.64.03"),
        ("nvidia_driver", "blocked", "refuse", "a .run file"),
        "set nvidia_driver_version: 575.64.03 to use it as it is",
    ),
    "packages of the wanted toolkit": (
        foreign_toolkit(hostroot.TOOLKIT),
        ("container_toolkit", "change", "adopt", "packages of dpkg"),
        "1 packages absent → 1.17.8",
    ),
    "packages of a newer toolkit": (
        foreign_toolkit("1.18.1"),
        ("container_toolkit", "blocked", "refuse", "packages of dpkg"),
        "set container_toolkit_version: 1.18.1 to use it as it is",
    ),
    "a runtime with our program": (
        containerd_runtime("/usr/bin/nvidia-container-runtime"),
        ("container_runtime", "install", "adopt", "containerd's configuration"),
        "defines nvidia itself, with the program of ours",
    ),
    "a runtime of gpu-operator": (
        containerd_runtime("/usr/local/nvidia/toolkit/nvidia-container-runtime"),
        ("container_runtime", "blocked", "refuse", "containerd's configuration"),
        "defines runtime nvidia as /usr/local/nvidia/toolkit/nvidia-container-runtime",
    ),
    "the Ascend docker runtime": (
        lambda root: hostroot.put(
            root, "/usr/local/Ascend/Ascend-Docker-Runtime/ascend-docker-runtime", ""
        ),
        ("container_runtime", "install", "coexist", "Ascend docker runtime"),
        "stays as it is; ours are added beside it",
    ),
    "upstream's client-update": (
        lambda root: hostroot.put(root, "/opt/xpu/lib/libcuda.so", "theirs"),
        ("xpu_runtime", "blocked", "refuse", "another installation of the library"),
        "/opt/xpu/lib: not a link of ours",
    ),
    "npu-exporter on its port": (
        port_8082("npu-exporter"),
        ("ports", "ok", "coexist", "npu-exporter"),
        "port 8082 is held by npu-exporter (pid 77)",
    ),
}


@pytest.mark.parametrize("case", OWNERS)
def test_each_foreign_owner_is_found_and_decided(case: str, bare_host: Host) -> None:
    change, wanted, words = OWNERS[case]
    change(Path(bare_host.root))
    result = probe(bare_host, "h", hostroot.desired())
    steps = {step["component"]: step for step in result["plan"]}
    step = steps[wanted[0]]
    assert (step["component"], step["action"], step["stance"], step["owner"]) == wanted
    assert words in step["reason"]
    others = {name: found["stance"] for name, found in steps.items() if name != wanted[0]}
    assert set(others.values()) == {""}, others
    if wanted[1] == "blocked":
        assert len(site.plan_faults({"h": result})) == 1
    assert any(f"{wanted[2]}: " in line for line in site.plan_lines({"h": result}))


def test_our_own_exporter_on_the_port_is_nothing_to_tell(bare_host: Host) -> None:
    port_8082("xpu-exporter")(Path(bare_host.root))
    assert owners.plan_ports(owners.observe(bare_host)) == []


# -- what is theirs stays, uninstall included --------------------------------------------------

FOREIGN_DRIVERS = {
    "packages": packaged_driver(hostroot.DRIVER, DRIVER_DEB),
    ".run file": foreign_driver(hostroot.DRIVER),
}


@pytest.mark.parametrize("case", FOREIGN_DRIVERS)
def test_a_foreign_driver_is_neither_changed_nor_removed(case: str, tmp_path: Path) -> None:
    programs = Programs()
    host = host_with(hostroot.bare(tmp_path), programs, "sh", "systemctl")
    FOREIGN_DRIVERS[case](tmp_path)
    before = snapshot(tmp_path)
    for state in ("present", "absent"):
        result = nvidia_driver.converge(host, {**DRIVER, "state": state}, False)
        assert not result["changed"]
        assert snapshot(tmp_path) == before
    assert result["left"] == [f"driver {hostroot.DRIVER}: not installed by flexai.xpu"]
    assert programs.calls == []


@pytest.mark.parametrize("case", [name for name in OWNERS if "packages of" in name])
def test_what_is_refused_is_not_touched_by_the_module_either(case: str, tmp_path: Path) -> None:
    change, (component, action, _stance, _owner), _words = OWNERS[case]
    programs = Programs()
    host = host_with(hostroot.bare(tmp_path), programs, "sh", "systemctl", "dpkg")
    change(tmp_path)
    if action != "blocked":
        return
    before = snapshot(tmp_path)
    params = DRIVER if component == "nvidia_driver" else TOOLKIT
    module = nvidia_driver if component == "nvidia_driver" else container_toolkit
    words = "by packages" if "and" in case else "belongs to the package manager"
    with pytest.raises(XpuError, match=words):
        module.converge(host, {**params, "state": "present"}, False)
    assert snapshot(tmp_path) == before
    assert programs.calls == []


def test_a_foreign_toolkit_gets_what_it_lacks_and_keeps_all_that_is_its_own(
    tmp_path: Path,
) -> None:
    def dpkg(argv: list[str]) -> Completed:
        if "--install" in argv:
            names = [Path(file).name.split("_")[0] for file in argv if file.endswith(".deb")]
            add_packages(tmp_path, "".join(hostroot.package(n, "1.17.8-1") for n in names))
        else:
            gone = argv[argv.index("--purge") + 1 :]
            status = tmp_path / "var/lib/dpkg/status"
            entries = status.read_text().split("\n\n")
            kept = [e for e in entries if not any(f"Package: {n}\n" in e for n in gone)]
            status.write_text("\n\n".join(kept))
        return Completed(0)

    programs = Programs(dpkg=dpkg)  # type: ignore[arg-type]
    host = host_with(hostroot.bare(tmp_path), programs, "dpkg")
    hostroot.toolkit_tarball(tmp_path / "toolkit.tar.gz")
    foreign_toolkit(hostroot.TOOLKIT)(tmp_path)
    config = hostroot.put(
        tmp_path, "/etc/nvidia-container-runtime/config.toml", "# the site's\nno-cgroups = true\n"
    )
    before = snapshot(tmp_path)

    done = container_toolkit.converge(host, {**TOOLKIT, "state": "present"}, False)
    assert done["changed"]
    (call,) = programs.calls
    assert [Path(word).name for word in call if word.endswith(".deb")] == [
        "nvidia-container-toolkit-operator-extensions_1.17.8-1_amd64.deb"
    ]
    assert "no-cgroups = true" in config.read_text()
    assert not container_toolkit.converge(host, {**TOOLKIT, "state": "present"}, False)["changed"]

    gone = container_toolkit.converge(host, {**TOOLKIT, "state": "absent"}, False)
    assert gone["left"] == [
        f"package {name}: not installed by flexai.xpu" for name in sorted(hostroot.PACKAGES[:-1])
    ]
    assert snapshot(tmp_path) == before
    assert not container_toolkit.converge(host, {**TOOLKIT, "state": "absent"}, False)["changed"]


BY_NVIDIA_CTK = {"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}
OURS_BY_HAND = {"runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "args": []}}}


@pytest.mark.parametrize("theirs", [BY_NVIDIA_CTK, OURS_BY_HAND])
def test_a_runtime_of_dockers_that_the_site_wrote_itself_outlives_us(
    theirs: dict[str, Any], tmp_path: Path
) -> None:
    host = host_with(hostroot.bare(tmp_path), Programs(), "dockerd")
    file = hostroot.put(tmp_path, "/etc/docker/daemon.json", json.dumps(theirs))
    assert docker_runtime.converge(host, {"state": "present"}, False)["changed"]
    runtimes = json.loads(file.read_text())["runtimes"]
    assert runtimes["nvidia"] == theirs["runtimes"]["nvidia"]
    assert set(runtimes) == {"nvidia", "nvidia-cdi"}
    assert not docker_runtime.converge(host, {"state": "present"}, False)["changed"]
    assert docker_runtime.converge(host, {"state": "absent"}, False)["changed"]
    assert file.read_text() == json.dumps(theirs)
    assert not docker_runtime.converge(host, {"state": "absent"}, False)["changed"]


def test_a_runtime_of_dockers_with_another_program_is_refused(tmp_path: Path) -> None:
    host = host_with(hostroot.bare(tmp_path), Programs(), "dockerd")
    theirs = {"runtimes": {"nvidia": {"path": "/opt/theirs/runtime"}}}
    hostroot.put(tmp_path, "/etc/docker/daemon.json", json.dumps(theirs))
    with pytest.raises(XpuError, match="defines runtime nvidia as /opt/theirs/runtime"):
        docker_runtime.converge(host, {"state": "present"}, False)


# -- package databases -------------------------------------------------------------------------


def test_dpkg_knows_held_and_removed_packages_apart() -> None:
    status = (
        hostroot.package("nvidia-a", "2:1.0-rc1-3")
        + "Package: nvidia-b\nStatus: hold ok installed\nVersion: 2.0\n\n"
        + "Package: nvidia-c\nStatus: deinstall ok config-files\nVersion: 3.0\n\n"
        + "Package: nvidia-d\nEssential: yes\nStatus: install ok installed\nVersion: 4.0-1\n\n"
        + hostroot.package("bash", "5")
    )
    assert packages.from_dpkg(status, ("nvidia",)) == {
        "nvidia-a": "1.0-rc1",
        "nvidia-b": "2.0",
        "nvidia-d": "4.0",
    }


def rpm_header(name: str, version: str) -> bytes:
    """As rpm stores it: the number of tags, the size of the data, the index, the data."""
    data, index = b"", b""
    for tag, text in ((1000, name), (1001, version), (1002, "1.el9")):
        index += struct.pack(">IIII", tag, 6, len(data), 1)
        data += text.encode() + b"\0"
    return struct.pack(">II", 3, len(data)) + index + data


def rpm_database(path: Path, *entries: tuple[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
    database.execute("CREATE TABLE Name (key TEXT NOT NULL, hnum INTEGER, idx INTEGER)")
    for number, (name, version) in enumerate(entries):
        database.execute("INSERT INTO Packages VALUES (?, ?)", (number, rpm_header(name, version)))
        database.execute("INSERT INTO Name VALUES (?, ?, 0)", (name, number))
    database.commit()
    database.close()


@pytest.mark.parametrize("path", packages.RPM_DATABASES)
def test_rpm_is_read_without_running_it_and_without_leaving_a_trace(
    path: str, tmp_path: Path
) -> None:
    programs = Programs()
    host = host_with(tmp_path, programs, "rpm")
    database = tmp_path / path.lstrip("/")
    rpm_database(database, ("kmod-nvidia-open-dkms", "580.95.05"), ("bash", "5.1"))
    found = packages.observe(host, "")
    assert found == packages.Packages("rpm", {"kmod-nvidia-open-dkms": "580.95.05"})
    assert programs.calls == []
    assert [file.name for file in database.parent.iterdir()] == ["rpmdb.sqlite"]


def test_what_a_killed_transaction_left_in_rpms_journal_is_read_too(tmp_path: Path) -> None:
    host = host_with(tmp_path, Programs())
    path = tmp_path / packages.RPM_DATABASES[1].lstrip("/")
    rpm_database(path, ("kmod-nvidia-open-dkms", "580.95.05"))
    # Open while it is looked at, as a dnf that was stopped leaves it: its end would empty it.
    with contextlib.closing(sqlite3.connect(path)) as dnf:
        dnf.execute("PRAGMA journal_mode=WAL")
        dnf.execute("INSERT INTO Packages VALUES (9, ?)", (rpm_header("nvidia-ml", "580.95.05"),))
        dnf.execute("INSERT INTO Name VALUES ('nvidia-ml', 9, 0)")
        dnf.commit()
        assert packages.observe(host, "").versions.keys() == {"kmod-nvidia-open-dkms", "nvidia-ml"}


def test_rpms_old_database_is_asked_of_rpm_itself(tmp_path: Path) -> None:
    programs = Programs(rpm=lambda _argv: Completed(0, "nvidia-driver 550.54.14\n"))
    host = host_with(tmp_path, programs, "rpm")
    hostroot.put(tmp_path, packages.RPM_OLD_DATABASE, "")
    assert packages.observe(host, "").versions == {"nvidia-driver": "550.54.14"}
    assert len(programs.calls) == 1


def test_a_damaged_record_of_ours_stops_the_host(bare_host: Host) -> None:
    hostroot.put(Path(bare_host.root), records.path("nvidia_driver"), "{")
    with pytest.raises(XpuError, match="our own record, holds no JSON object"):
        probe(bare_host, "h", hostroot.desired())
