# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input, through the real playbook: one clear error before any host is touched."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.plugin_utils._controller import load_manifest

from . import hostroot

REPOSITORY = Path(__file__).parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
Site = dict[str, Any]
NOBODY = pwd.getpwnam("nobody")
# The way there: nobody has no shell to log in with.
AS_NOBODY = {
    "ansible_become": True,
    "ansible_become_user": NOBODY.pw_name,
    "ansible_become_method": "ansible.builtin.su",
    "ansible_become_flags": "-s /bin/sh",
}


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may look into, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="flexai-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An inventory of two bare hosts, each a root of its own."""
    hosts = {
        name: {"flexai_root": str(hostroot.bare(tmp_path / name))} for name in ("gpu1", "gpu2")
    }
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_manifest": str(hostroot.manifest(tmp_path / "artefacts")),
        "preflight_min_free_mib": 1,
    }
    groups = {
        "flexai_nodes": {"hosts": hosts},
        "flexai_kubernetes": {"hosts": {name: {} for name in hosts}},
    }
    return {"all": {"vars": variables, "children": groups}}


def run(
    tmp_path: Path, site: Site, playbook: str | Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """One of ours by its name, or a file."""
    named = str(playbook) if isinstance(playbook, Path) else f"flexai.xpu.{playbook}"
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump(site))
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")}
    return subprocess.run(
        [str(PLAYBOOK), named, "-i", str(inventory), *more],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def variables(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site["all"]["vars"]
    return found


def hosts(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site["all"]["children"]["flexai_nodes"]["hosts"]
    return found


def set_variable(name: str, value: Any) -> Callable[[Site], None]:
    return lambda site: variables(site).update({name: value})


def set_host(host: str, **values: Any) -> Callable[[Site], None]:
    return lambda site: hosts(site)[host].update(values)


def artefact_file(site: Site) -> Path:
    return Path(variables(site)["flexai_manifest"]).with_name("driver.run")


CASES: dict[str, tuple[Callable[[Site], Any], str]] = {
    "unknown variable": (
        set_variable("nvidia_driver_verion", "1"),
        "Unknown variable nvidia_driver_verion. Remedy: did you mean nvidia_driver_version?",
    ),
    "wrong type": (
        set_variable("preflight_min_free_mib", "plenty"),
        "argument 'preflight_min_free_mib' is of type",
    ),
    "wrong choice": (
        set_variable("container_runtime_engine", "podman"),
        "value of container_runtime_engine must be one of: auto, containerd, crio, docker, "
        "cri-dockerd, got: podman",
    ),
    "contradicting versions": (
        set_host("gpu2", container_toolkit_version="1.16.1"),
        "gpu2: container_toolkit_version 1.16.1: CVE-2024-0132 (mended in 1.16.2",
    ),
    "duplicate host": (
        lambda site: hosts(site).update({"gpu3": dict(hosts(site)["gpu1"], ansible_host="gpu1")}),
        "Duplicate host: gpu1 and gpu3 are both gpu1",
    ),
    "duplicate node name": (
        set_host("gpu2", node_labels_node_name="gpu1"),
        "Duplicate node name: gpu1 and gpu2 are both gpu1. Remedy: give each host its own node's "
        "name in node_labels_node_name, or take one of them out of flexai_kubernetes.",
    ),
    "duplicate node name by a template": (
        set_variable("node_labels_node_name", "{{ inventory_hostname[:3] }}.example.org"),
        "Duplicate node name: gpu1 and gpu2 are both gpu.example.org. Remedy: give each",
    ),
    "no manifest": (
        set_variable("flexai_manifest", "/nowhere/manifest.yml"),
        "The artefact manifest /nowhere/manifest.yml (flexai_manifest) does not exist.",
    ),
    "manifest not set": (
        lambda site: variables(site).pop("flexai_manifest"),
        "Variable flexai_manifest is required.",
    ),
    "version without artefact": (
        set_variable("nvidia_driver_version", "590.10.01"),
        "has no artefact nvidia-driver 590.10.01; it has 580.95.05.",
    ),
    "missing artefact": (
        lambda site: artefact_file(site).unlink(),
        "driver.run does not exist; wanted is SHA-256 ",
    ),
    "wrong digest": (
        lambda site: artefact_file(site).write_text("altered"),
        "driver.run has SHA-256 " + hashlib.sha256(b"altered").hexdigest() + "",
    ),
    "unreachable host": (
        set_host("gpu2", ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9),
        "gpu2 is unreachable (Task failed: Data could not be sent to remote host",
    ),
    "blocked host": (
        set_host("gpu2", container_runtime_engine="docker"),
        "gpu2: container_runtime is blocked: dockerd is not installed; install Docker first.",
    ),
}


def files(*roots: Path) -> dict[str, str]:
    """Everything below the roots: kind, mode, time of change and content."""
    return {str(path): describe(path) for root in roots for path in sorted(root.rglob("*"))}


def describe(path: Path) -> str:
    state = path.lstat()
    content = ""
    if path.is_symlink():
        content = os.readlink(path)
    elif path.is_file():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{state.st_mode:o} {state.st_mtime_ns} {content}"


def on_one_line(text: str) -> str:
    return " ".join(text.replace("\\n", "\n").split())


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_error_and_no_change_play_runs(
    case: str, tmp_path: Path, site: Site
) -> None:
    spoil, text = CASES[case]
    spoil(site)
    before = files(tmp_path / "gpu1", tmp_path / "gpu2")
    done = run(tmp_path, site, "site")
    assert done.returncode != 0, done.stdout
    assert on_one_line(text) in on_one_line(done.stdout)
    assert "PLAY [Change]" not in done.stdout
    assert files(tmp_path / "gpu1", tmp_path / "gpu2") == before


def test_one_node_name_is_fine_where_only_one_of_the_hosts_is_in_the_cluster(
    tmp_path: Path, site: Site
) -> None:
    set_host("gpu2", node_labels_node_name="gpu1")(site)
    del site["all"]["children"]["flexai_kubernetes"]["hosts"]["gpu1"]
    done = run(tmp_path, site, "preflight")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_not_root_is_told_by_a_host_where_we_really_are_not(
    open_directory: Path, tmp_path: Path, site: Site
) -> None:
    """The user nobody may not read all that the plan follows from, and is told why all the same."""
    root = hostroot.bare(open_directory / "gpu2")
    (root / "etc/containerd/config.toml").chmod(0o600)
    set_host("gpu2", flexai_root=str(root), **AS_NOBODY)(site)
    before = files(tmp_path / "gpu1", root)
    done = run(tmp_path, site, "site")
    assert done.returncode != 0, done.stdout
    assert on_one_line(
        "Nothing was changed on any host. gpu2: host is blocked: not root (effective uid "
        f"{NOBODY.pw_uid}); set become: true, or connect as root."
    ) in on_one_line(done.stdout)
    assert "PLAY [Change]" not in done.stdout
    assert files(tmp_path / "gpu1", root) == before


def test_preflight_shows_the_plan_and_changes_nothing(tmp_path: Path, site: Site) -> None:
    before = files(tmp_path / "gpu1")
    done = run(tmp_path, site, "preflight")
    assert done.returncode == 0, done.stdout
    assert "gpu1  nvidia_driver      install  driver absent → 580.95.05" in done.stdout
    assert "changed=0" in done.stdout
    assert files(tmp_path / "gpu1") == before


def test_with_a_registry_no_image_is_brought_to_the_nodes(tmp_path: Path, site: Site) -> None:
    """And the password of it is in nothing that the run says."""
    manifest = Path(variables(site)["flexai_manifest"])
    archive = hostroot.put(manifest.parent, "image.tar", "an image")
    image = {
        "name": "gpu-device-plugin",
        "version": "v1.0",
        "arch": "x86_64",
        "kind": "image",
        "file": archive.name,
        "source": archive.name,
        "sha256": hostroot.digest(archive),
        "image": "docker.io/library/gpu-device-plugin:v1.0",
        "image_digest": f"sha256:{'1' * 64}",
    }
    document = yaml.safe_load(manifest.read_text())
    document["artefacts"].append(image)
    manifest.write_text(yaml.safe_dump(document))
    without = run(tmp_path, site, "preflight")
    assert re.search(r"^gpu1 +images", without.stdout, re.MULTILINE), without.stdout
    secret = "correct-horse-battery"
    variables(site).update(images_registry="registry.site/xpu", images_registry_password=secret)
    done = run(tmp_path, site, "preflight", "-vvv")
    assert done.returncode == 0, done.stdout
    assert not [line for line in done.stdout.splitlines() if re.match(r"gpu\d +images", line)]
    assert secret not in done.stdout + done.stderr


def as_document_000(site: Site) -> None:
    """Its versions of driver and toolkit in the manifest, under its profile."""
    manifest = Path(variables(site)["flexai_manifest"])
    entries = yaml.safe_load(manifest.read_text())
    old = {"nvidia-driver": "535.183.06", "nvidia-container-toolkit": "1.16.1"}
    for entry in entries["artefacts"]:
        entry["version"] = old.get(entry["name"], entry["version"])
    manifest.write_text(yaml.safe_dump(entries))
    variables(site)["flexai_profile"] = "documents"


def test_the_documents_profile_is_taken_with_a_warning_that_names_its_dangers(
    tmp_path: Path, site: Site
) -> None:
    as_document_000(site)
    done = run(tmp_path, site, "preflight")
    assert done.returncode == 0, done.stdout
    said = on_one_line(done.stdout + done.stderr)
    for warning in (
        "[WARNING]: container_toolkit_version 1.16.1: CVE-2024-0132 (mended in 1.16.2",
        "[WARNING]: nvidia_driver_version 535.183.06: driver branches before 550",
    ):
        assert said.count(warning) == 1, said


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda file: (file.unlink(), file.mkdir()), "can't be read: [Errno 21] Is a directory"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "can't be read: 'utf-8' codec can't decode"),
        (lambda file: file.write_text("{"), "is no YAML: while parsing"),
        (lambda file: file.write_text("version: 2"), "of version 1 (found 2)"),
    ],
    ids=["directory", "no text", "no YAML", "other version"],
)
def test_a_manifest_that_is_none_is_told_without_a_traceback(
    spoil: Callable[[Path], object], text: str, tmp_path: Path
) -> None:
    file = tmp_path / "manifest.yml"
    file.write_text("")
    spoil(file)
    with pytest.raises(XpuError) as error:
        load_manifest(str(file))
    assert str(file) in error.value.msg
    assert text in error.value.msg


def test_a_manifest_that_nobody_named_is_told() -> None:
    with pytest.raises(XpuError, match="flexai_manifest, the artefact manifest on the controller"):
        load_manifest("")
