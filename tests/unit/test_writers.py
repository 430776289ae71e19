# SPDX-License-Identifier: GPL-3.0-or-later
"""Each writer: absent → present → again → check → absent, with truthful `changed` and diff."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _containerd as containerd
from ansible_collections.flexai.xpu.plugins.module_utils import _xpu_runtime as xpu
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import (
    container_toolkit,
    containerd_runtime,
    docker_runtime,
    nvidia_driver,
    xpu_release,
)

from . import hostroot

Converge = Callable[[Host, Mapping[str, Any], bool], dict[str, Any]]


def snapshot(root: Path) -> dict[str, str]:
    """Every file and link with its content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"→ {os.readlink(path)}"
        elif path.is_file():
            found[name] = f"{path.stat().st_mode & 0o777:o} {path.read_bytes()!r}"
    return found


def cycle(converge: Converge, host: Host, params: Mapping[str, Any]) -> None:
    """Run the five steps; what a check says must be what the run then does."""
    root = Path(host.root)
    before = snapshot(root)

    predicted = converge(host, {**params, "state": "present"}, True)
    assert predicted["changed"]
    assert snapshot(root) == before, "check mode wrote something"

    done = converge(host, {**params, "state": "present"}, False)
    assert done["changed"]
    present = snapshot(root)
    assert present != before

    again = converge(host, {**params, "state": "present"}, False)
    assert not again["changed"]
    assert not converge(host, {**params, "state": "present"}, True)["changed"]
    assert snapshot(root) == present

    assert converge(host, {**params, "state": "absent"}, True)["changed"]
    assert snapshot(root) == present, "check mode wrote something"
    assert converge(host, {**params, "state": "absent"}, False)["changed"]
    assert not converge(host, {**params, "state": "absent"}, False)["changed"]


class Programs:
    """Stands for the programs of a host: name → what it does; every call is kept."""

    def __init__(self, **answers: Callable[[Sequence[str]], Completed]) -> None:
        self.answers, self.calls = answers, list[list[str]]()

    def __call__(self, argv: Sequence[str], timeout_s: float) -> Completed:
        name = Path(argv[0]).name.replace("-", "_")
        self.calls.append([Path(argv[0]).name, *argv[1:]])
        return self.answers[name](argv)


def host_with(root: Path, programs: Programs, *names: str) -> Host:
    for name in names:
        hostroot.put(root, f"/usr/bin/{name}", "", 0o755)
    return Host(str(root), runner=programs)


# -- driver ----------------------------------------------------------------------------------

DRIVER = {
    "version": hostroot.DRIVER,
    "installer": "/cache/driver.run",
    "kernel_module_type": "",
    "persistenced": True,
    "allow_downgrade": False,
}


def driver_host(root: Path) -> tuple[Host, Programs]:
    def uninstall(_argv: Sequence[str]) -> Completed:
        for path in ("usr/lib/x86_64-linux-gnu/libcuda.so.1", "usr/bin/nvidia-uninstall"):
            (root / path).unlink()
        return Completed(0)

    def install(_argv: Sequence[str]) -> Completed:
        hostroot.install_driver(root)
        return Completed(0)

    def systemctl(_argv: Sequence[str]) -> Completed:
        hostroot.enable_persistenced(root)
        return Completed(0)

    def nvidia_smi(_argv: Sequence[str]) -> Completed:
        return Completed(0, (root / "sim/nvidia-smi").read_text())

    programs = Programs(
        sh=install, systemctl=systemctl, nvidia_smi=nvidia_smi, nvidia_uninstall=uninstall
    )
    host = host_with(hostroot.bare(root), programs, "sh", "systemctl")
    hostroot.put(root, "/cache/driver.run", "")
    return host, programs


def test_driver_cycle(tmp_path: Path) -> None:
    host, programs = driver_host(tmp_path)
    cycle(nvidia_driver.converge, host, DRIVER)
    assert [call[0] for call in programs.calls] == [
        "sh",
        "nvidia-smi",
        "systemctl",
        "nvidia-uninstall",
    ]
    assert programs.calls[0][2:] == [
        "--silent",
        "--accept-license",
        "--no-questions",
        "--disable-nouveau",
        "--install-libglvnd",
        "--no-x-check",
        "--no-nouveau-check",
        "--kernel-module-type=open",
    ]
    assert not (tmp_path / "etc/modprobe.d/flexai-xpu-nouveau.conf").exists()


def test_an_installer_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    host, programs = driver_host(tmp_path)
    programs.answers["sh"] = lambda _argv: Completed(1, "", "ERROR: no kernel headers")
    with pytest.raises(XpuError, match=r"ended with rc 1: ERROR: no kernel headers") as error:
        nvidia_driver.converge(host, {**DRIVER, "state": "present"}, False)
    assert "nvidia-installer.log" in error.value.remedy


def test_an_installer_of_another_version_is_found_out(tmp_path: Path) -> None:
    host, programs = driver_host(tmp_path)
    programs.answers["sh"] = lambda _argv: Completed(0)
    with pytest.raises(XpuError, match=r"libcuda\.so\.1 leads to no driver, not to 580"):
        nvidia_driver.converge(host, {**DRIVER, "state": "present"}, False)


# -- toolkit ---------------------------------------------------------------------------------

TOOLKIT = {
    "version": hostroot.TOOLKIT,
    "tarball": "/toolkit.tar.gz",
    "method": "tarball",
    "accept_envvar_unprivileged": False,
    "accept_volume_mounts": True,
    "mode": "auto",
}


def toolkit_host(root: Path) -> tuple[Host, Programs]:
    def dpkg(argv: Sequence[str]) -> Completed:
        if "--install" in argv:
            hostroot.install_toolkit(root)
            # As the package's postinst does: no package owns the file, so none purges it.
            hostroot.put(root, "/etc/nvidia-container-runtime/config.toml", "#mode of upstream\n")
        else:
            hostroot.put(root, "/var/lib/dpkg/status", hostroot.package("bash", "5.2.15-2"))
        return Completed(0)

    programs = Programs(
        dpkg=dpkg,
        nvidia_ctk=lambda _argv: Completed(0, "cdiVersion: 0.5.0\nlibcuda.so.580.95.05\n"),
    )
    hostroot.bare(root)
    hostroot.install_driver(root)
    hostroot.toolkit_tarball(root / "toolkit.tar.gz")
    return host_with(root, programs, "dpkg"), programs


def test_toolkit_cycle_installs_exactly_the_five_packages(tmp_path: Path) -> None:
    host, programs = toolkit_host(tmp_path)
    cycle(container_toolkit.converge, host, TOOLKIT)
    install = next(call for call in programs.calls if "--install" in call)
    assert sorted(Path(file).name.split("_")[0] for file in install[3:]) == sorted(
        hostroot.PACKAGES
    )
    for directory in ("etc/cdi", "etc/nvidia-container-runtime"):
        assert not (tmp_path / directory).exists()


def test_a_toolkit_that_is_not_there_is_not_removed_with_its_foreign_files(tmp_path: Path) -> None:
    """Another owner, an operator say, brought them without packages."""
    host, _programs = toolkit_host(tmp_path)
    hostroot.put(tmp_path, "/etc/nvidia-container-runtime/config.toml", "theirs\n")
    hostroot.put(tmp_path, "/etc/cdi/nvidia.yaml", "theirs\n")
    assert not container_toolkit.converge(host, {**TOOLKIT, "state": "absent"}, False)["changed"]
    assert host.read("/etc/nvidia-container-runtime/config.toml") == "theirs\n"
    assert host.read("/etc/cdi/nvidia.yaml") == "theirs\n"


def test_a_tarball_of_another_architecture_is_refused_before_dpkg(tmp_path: Path) -> None:
    host, programs = toolkit_host(tmp_path)
    hostroot.toolkit_tarball(tmp_path / "toolkit.tar.gz", architecture="ppc64el")
    with pytest.raises(XpuError, match=r"holds no deb of libnvidia-container1, .* for x86_64"):
        container_toolkit.converge(host, {**TOOLKIT, "state": "present"}, False)
    assert not programs.calls


def test_the_cdi_file_waits_for_the_reboot_and_says_so(tmp_path: Path) -> None:
    host, _programs = toolkit_host(tmp_path)
    (tmp_path / "proc/driver/nvidia/version").unlink()
    result = container_toolkit.converge(host, {**TOOLKIT, "state": "present"}, False)
    assert result["warnings"] == [
        "/etc/cdi/nvidia.yaml waits for the reboot: kernel module not loaded, driver 580.95.05."
    ]
    assert not container_toolkit.converge(host, {**TOOLKIT, "state": "present"}, False)["changed"]


# -- containerd ------------------------------------------------------------------------------


def test_containerd_cycle_and_the_way_back(bare_host: Host) -> None:
    before = (Path(bare_host.root) / "etc/containerd/config.toml").read_text()
    cycle(containerd_runtime.converge, bare_host, {})
    assert (Path(bare_host.root) / "etc/containerd/config.toml").read_text() == before
    assert not (Path(bare_host.root) / "etc/containerd/conf.d/flexai-xpu.toml").exists()


def edit(host: Host, path: str, addition: str) -> str:
    """What the site does between our runs; the file's text after it."""
    text = (host.read(path) or "") + addition
    host.write(path, text)
    return text


def our_traces(host: Host) -> list[str]:
    """Our files, and foreign ones that name us or our directory of drop-ins."""
    return [
        name
        for name, what in snapshot(Path(host.root)).items()
        if not name.startswith(("sim/", "usr/"))
        if "flexai" in name or "flexai" in what or "conf.d" in what or "nvidia" in what
    ]


def test_a_reinstall_keeps_what_the_site_edited_since_the_first(bare_host: Host) -> None:
    containerd_runtime.converge(bare_host, {"state": "present"}, False)
    containerd_runtime.converge(bare_host, {"state": "absent"}, False)
    assert our_traces(bare_host) == []
    text = edit(bare_host, "/etc/containerd/config.toml", "[debug]\n  level = 'warn'\n")
    containerd_runtime.converge(bare_host, {"state": "present"}, False)
    containerd_runtime.converge(bare_host, {"state": "absent"}, False)
    assert bare_host.read("/etc/containerd/config.toml") == text
    assert our_traces(bare_host) == []


@pytest.mark.parametrize("imports", ["", 'imports = ["/etc/site/*.toml"]\n'])
def test_what_the_site_edits_while_we_are_installed_stays_when_we_go(
    bare_host: Host, imports: str
) -> None:
    config = "/etc/containerd/config.toml"
    bare_host.write(config, f"version = 2\n{imports}[plugins]\n")
    containerd_runtime.converge(bare_host, {"state": "present"}, False)
    edit(bare_host, config, "[debug]\n")
    containerd_runtime.converge(bare_host, {"state": "absent"}, False)
    assert bare_host.read(config) == f"version = 2\n{imports}[plugins]\n[debug]\n"
    assert our_traces(bare_host) == []


def test_an_import_that_the_site_had_before_us_stays_when_we_go(bare_host: Host) -> None:
    config = "/etc/containerd/config.toml"
    text = 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
    bare_host.write(config, text)
    containerd_runtime.converge(bare_host, {"state": "present"}, False)
    containerd_runtime.converge(bare_host, {"state": "absent"}, False)
    assert bare_host.read(config) == text


def test_the_kept_original_is_readable_by_root_only(bare_host: Host) -> None:
    """A site's configuration may hold a registry's password."""
    containerd_runtime.converge(bare_host, {"state": "present"}, False)
    state = bare_host.stat(containerd.ORIGINAL_FILE)
    assert state is not None and state.st_mode & 0o777 == 0o600


def test_the_sites_comments_and_own_imports_stay(bare_host: Host) -> None:
    file = Path(bare_host.root) / "etc/containerd/config.toml"
    file.write_text('# ours\nversion = 2\nimports = ["/etc/site/*.toml"]\n[plugins]\n')
    containerd_runtime.converge(bare_host, {"state": "present"}, False)
    imports = f'imports = ["/etc/site/*.toml", "{containerd.DROP_IN}"]'
    assert file.read_text() == f"# ours\nversion = 2\n{imports}\n[plugins]\n"


class Daemon(Host):
    """A host root that passes for the running system, with a containerd that can refuse."""

    @property
    def is_real(self) -> bool:
        return self.root == "/" or getattr(self, "_pretend", False)

    def path(self, path: str) -> str:
        return self.root + path


def test_a_failed_restart_restores_the_former_files_and_says_so(
    bare_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(bare_host.root)
    drop_in = root / "etc/containerd/conf.d/flexai-xpu.toml"
    before = (root / "etc/containerd/config.toml").read_text()
    base = (root / "sim/base.toml").read_text()

    def ctr(_argv: Sequence[str]) -> Completed:
        state = "error" if drop_in.exists() else "ok"
        return Completed(0, f"io.containerd.grpc.v1 cri linux/amd64 {state}\n")

    programs = Programs(
        containerd=lambda _argv: Completed(0, base),
        ctr=ctr,
        systemctl=lambda _argv: Completed(0),
        journalctl=lambda _argv: Completed(0, "invalid plugin config\nfailed\n"),
    )
    host = Daemon(str(root), runner=programs)
    host_with(root, programs, "systemctl", "journalctl")
    monkeypatch.setattr(host, "_pretend", True, raising=False)
    monkeypatch.setattr(host, "program", lambda name: Host.program(bare_host, name))
    with pytest.raises(XpuError) as error:
        containerd_runtime.converge(host, {"state": "present"}, False)
    assert error.value.msg == (
        "containerd did not come back with /etc/containerd/conf.d/flexai-xpu.toml; its former "
        "files are in place again, and it runs with them. It said: invalid plugin config / failed."
    )
    assert our_traces(host) == []
    assert (root / "etc/containerd/config.toml").read_text() == before


# -- docker ----------------------------------------------------------------------------------


def docker_host(root: Path, text: str | None) -> Host:
    hostroot.put(root, "/usr/sbin/dockerd", "", 0o755)
    if text is not None:
        hostroot.put(root, "/etc/docker/daemon.json", text)
    return Host(str(root))


@pytest.mark.parametrize("text", [None, '{\n  "live-restore": true, "log-driver":"journald"}\n'])
def test_docker_cycle_gives_the_original_text_back(tmp_path: Path, text: str | None) -> None:
    host = docker_host(tmp_path, text)
    cycle(docker_runtime.converge, host, {})
    assert host.read("/etc/docker/daemon.json") == text


def test_docker_is_left_as_the_site_has_it_since_the_first_time(tmp_path: Path) -> None:
    """Compared with the first install's original, an empty object would be taken for no file."""
    host = docker_host(tmp_path, None)
    docker_runtime.converge(host, {"state": "present"}, False)
    docker_runtime.converge(host, {"state": "absent"}, False)
    assert our_traces(host) == []
    text = edit(host, "/etc/docker/daemon.json", '{ "dns":["10.0.0.1"] }\n')
    docker_runtime.converge(host, {"state": "present"}, False)
    docker_runtime.converge(host, {"state": "absent"}, False)
    assert host.read("/etc/docker/daemon.json") == text
    assert our_traces(host) == []


def test_foreign_keys_of_daemon_json_keep_their_meaning(tmp_path: Path) -> None:
    foreign = {"runtimes": {"kata": {"path": "/k"}}, "dns": ["10.0.0.1"], "storage-driver": "é"}
    host = docker_host(tmp_path, json.dumps(foreign))
    docker_runtime.converge(host, {"state": "present"}, False)
    found = json.loads(host.read("/etc/docker/daemon.json") or "")
    assert found["runtimes"].pop("nvidia")["path"] == "/usr/bin/nvidia-container-runtime"
    assert found["runtimes"].pop("nvidia-cdi")["path"] == "/usr/bin/nvidia-container-runtime.cdi"
    assert found == foreign


def test_a_broken_daemon_json_is_named_and_left_alone(tmp_path: Path) -> None:
    host = docker_host(tmp_path, "{ nonsense")
    with pytest.raises(XpuError, match=r"/etc/docker/daemon.json is no JSON"):
        docker_runtime.converge(host, {"state": "present"}, False)
    assert host.read("/etc/docker/daemon.json") == "{ nonsense"


# -- xpu release -----------------------------------------------------------------------------


def release(root: Path, **files: str) -> dict[str, Any]:
    contents = {name.replace("__", "/"): text for name, text in files.items()} or None
    sha256 = hostroot.xpu_tarball(root / "xpu.tar", contents)
    return {"version": hostroot.XPU, "sha256": sha256, "tarball": "/xpu.tar"}


def test_xpu_cycle_leaves_nothing(tmp_path: Path) -> None:
    params = release(tmp_path)
    cycle(xpu_release.converge, Host(str(tmp_path)), params)
    assert not (tmp_path / "opt/xpu").exists()


def test_a_new_release_stands_beside_the_former_one(tmp_path: Path) -> None:
    host = Host(str(tmp_path))
    xpu_release.converge(host, {**release(tmp_path), "state": "present"}, False)
    first = host.link(xpu.CURRENT)
    xpu_release.converge(host, {**release(tmp_path, lib__a="2"), "state": "present"}, False)
    assert host.link(xpu.CURRENT) != first
    assert (tmp_path / "opt/xpu" / first).is_dir()
    assert (tmp_path / "opt/xpu/lib/a").read_text() == "2"


def test_an_altered_file_is_put_right(tmp_path: Path) -> None:
    host, params = Host(str(tmp_path)), {**release(tmp_path), "state": "present"}
    xpu_release.converge(host, params, False)
    library = tmp_path / "opt/xpu/lib/libcuda_direct.so"
    library.write_text("altered")
    assert xpu_release.converge(host, params, False)["changed"]
    assert library.read_text() == "library\n"


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "share/x"])
def test_a_tarball_that_leaves_its_directory_is_refused(tmp_path: Path, name: str) -> None:
    sha256 = hostroot.xpu_tarball(tmp_path / "xpu.tar", {"lib/a": "a", name: "evil"})
    params = {"version": "1", "sha256": sha256, "tarball": "/xpu.tar", "state": "present"}
    with pytest.raises(XpuError, match="which is no file or directory under lib, bin, VERSION"):
        xpu_release.converge(Host(str(tmp_path)), params, False)
    assert list((tmp_path / "opt/xpu/versions").iterdir()) == []
