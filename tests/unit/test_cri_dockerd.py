# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose kubelet reaches Docker by cri-dockerd: which runtime its containers get, how images
come to it, and what each of plan, modules and verdict says."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _container_engine as engines
from ansible_collections.flexai.xpu.plugins.module_utils import _docker as docker
from ansible_collections.flexai.xpu.plugins.module_utils import _images as images
from ansible_collections.flexai.xpu.plugins.module_utils import _judge as judge
from ansible_collections.flexai.xpu.plugins.module_utils import _plan as plan
from ansible_collections.flexai.xpu.plugins.module_utils._artefacts import Artefact
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import NOT_FOUND, Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import (
    docker_runtime,
    node_images,
    slice_check,
)

from . import hostroot
from .test_writers import cycle

FILE = docker.CONFIG_FILE
MANIFEST, CONFIGURATION = "sha256:" + "1" * 64, "sha256:" + "2" * 64


class Dockerd:
    """A running dockerd as 20.10 is: a reload adds runtimes and takes a default that is named, it
    drops neither; a restart reads everything anew. Images are known by their configuration."""

    def __init__(self, root: Path, text: str | None, containers: int = 0) -> None:
        self.root, self.containers = root, containers
        self.images: dict[str, str] = {}
        self.ran: list[str] = []
        for program in ("/usr/sbin/dockerd", "/usr/bin/docker", "/usr/bin/cri-dockerd"):
            hostroot.put(root, program, "", 0o755)
        hostroot.put(root, "/usr/bin/systemctl", "", 0o755)
        (root / "var/lib/kubelet").mkdir(parents=True)
        if text is not None:
            hostroot.put(root, FILE, text)
        self._restart()

    def _file(self) -> dict[str, Any]:
        path = self.root / FILE.lstrip("/")
        return docker.parse(path.read_text()) if path.exists() else {}

    def _restart(self) -> None:
        self.names, self.default = {"runc"}, "runc"
        self._reload()

    def _reload(self) -> None:
        self.names |= self._file().get("runtimes", {}).keys()
        self.default = self._file().get("default-runtime", self.default)

    def run(self, argv: Sequence[str], _timeout_s: float) -> Completed:
        words = [word.removeprefix(str(self.root)) for word in argv]
        words[0] = words[0].rpartition("/")[2]
        self.ran.append(" ".join(words))
        match words:
            case ["systemctl", "restart", _]:
                self._restart()
            case ["systemctl", "reload-or-restart", _]:
                self._reload()
            case ["docker", "info", "--format", form]:
                names = {name: {"path": docker.PROGRAMS_OF.get(name)} for name in self.names}
                if "names" in form:
                    said = {"names": names, "default": self.default}
                else:
                    said = {"Runtimes": names, "DefaultRuntime": self.default}
                return Completed(0, json.dumps(said), "")
            case ["docker", "ps", *_]:
                return Completed(0, "".join(f"c{n}\n" for n in range(self.containers)), "")
            case ["docker", "inspect", *_]:
                return Completed(0, self._inspected(), "")
            case ["docker", "image", "ls", *_]:
                rows = [f"{name} {identity}\n" for name, identity in self.images.items()]
                return Completed(0, "".join(rows), "")
            case ["docker", "image", "inspect", *_, name]:
                short = name.removeprefix("docker.io/library/")
                return Completed(0 if short in self.images else 1, self.images.get(short, ""), "")
            case ["docker", "load", "--input", _]:
                self.images["a:v1"] = CONFIGURATION
            case ["docker", "image", "rm", "--force", *names]:
                for name in names:
                    del self.images[name.removeprefix("docker.io/library/")]
        return Completed(0, "", "")

    def _inspected(self) -> str:
        labels = {
            "io.kubernetes.pod.namespace": "xpu",
            "io.kubernetes.pod.name": "p",
            "io.kubernetes.sandbox.id": "s",
        }
        row = {"ID": "c0", "Image": CONFIGURATION, "Running": True, "Labels": labels}
        return json.dumps(row) + "\n"

    @property
    def host(self) -> Host:
        """The host, in whose services the modules believe although it lies in a directory."""
        return RunningHost(str(self.root), self.run)


class RunningHost(Host):
    @property
    def is_real(self) -> bool:
        return True

    def path(self, path: str) -> str:
        return self.root + path

    def _inside(self, real: str) -> str:
        return real[len(self.root) :]


def converge(host: Host, state: str = "present", **more: Any) -> dict[str, Any]:
    return docker_runtime.converge(host, {"state": state, "serves_kubelet": True, **more}, False)


# -- which engine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("programs", "kubelet", "engine"),
    [
        (["/usr/bin/dockerd"], False, "docker"),
        (["/usr/bin/dockerd"], True, "containerd"),
        (["/usr/bin/dockerd", "/usr/bin/cri-dockerd"], True, "cri-dockerd"),
        (["/usr/sbin/dockerd", "/usr/local/bin/cri-dockerd"], True, "cri-dockerd"),
        (["/usr/bin/dockerd", "/usr/bin/cri-dockerd"], False, "docker"),
        (["/usr/bin/cri-dockerd"], True, "containerd"),
    ],
)
def test_cri_dockerd_is_the_engine_where_a_kubelet_has_it_beside_docker(
    tmp_path: Path, programs: list[str], kubelet: bool, engine: str
) -> None:
    for program in programs:
        hostroot.put(tmp_path, program, "", 0o755)
    if kubelet:
        (tmp_path / "var/lib/kubelet").mkdir(parents=True)
    assert plan.choose_engine(Host(str(tmp_path)), "auto") == engine


def test_the_engine_is_judged_by_its_own_version() -> None:
    facts = engines.Facts("cri-dockerd", True, "0.3.17", "debian", {})
    assert engines.plan(facts, engines.Wanted()).action == "ok"
    assert engines.version_of("cri-dockerd 0.3.17 (HEAD)") == "0.3.17"
    absent = engines.plan(facts._replace(installed=False), engines.Wanted(install=True))
    assert absent.action == "blocked"
    assert "name it in container_engine_packages" in absent.reason


# -- the runtime of pods' containers ---------------------------------------------------------


@pytest.mark.parametrize(
    "text", [None, '{\n  "live-restore": true, "default-runtime": "runc", "dns":["10.0.0.1"] }\n']
)
def test_the_default_runtime_is_the_slices_and_the_original_comes_back(
    tmp_path: Path, text: str | None
) -> None:
    hostroot.put(tmp_path, "/usr/sbin/dockerd", "", 0o755)
    if text is not None:
        hostroot.put(tmp_path, FILE, text)
    host = Host(str(tmp_path))
    cycle(docker_runtime.converge, host, {"serves_kubelet": True})
    assert host.read(FILE) == text
    converge(host)
    found = json.loads(host.read(FILE) or "")
    assert found["default-runtime"] == "nvidia-cdi"
    assert {key: found[key] for key in docker.parse(text) if key != "default-runtime"} == {
        key: value for key, value in docker.parse(text).items() if key != "default-runtime"
    }


def test_what_the_site_changed_since_stays_and_its_default_comes_back(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, '{"default-runtime": "runc"}')
    converge(dockerd.host)
    edited = {**json.loads(dockerd.host.read(FILE) or ""), "dns": ["10.0.0.1"]}
    hostroot.put(tmp_path, FILE, json.dumps(edited))
    converge(dockerd.host, "absent")
    assert json.loads(dockerd.host.read(FILE) or "") == {
        "default-runtime": "runc",
        "dns": ["10.0.0.1"],
    }


def test_a_reload_brings_it_without_touching_containers(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, "{}", containers=3)
    assert not converge(dockerd.host)["restarted"]
    assert dockerd.default == "nvidia-cdi"
    assert not any(line.startswith("systemctl restart") for line in dockerd.ran)


def test_uninstall_beside_running_pods_leaves_no_default_without_a_program(tmp_path: Path) -> None:
    """A reload keeps a default that the file only leaves out, and the program is about to go."""
    dockerd = Dockerd(tmp_path, "{}", containers=3)
    converge(dockerd.host)
    assert not converge(dockerd.host, "absent")["restarted"]
    assert dockerd.default == "runc"
    assert dockerd.host.read(FILE) == "{}"


def test_uninstall_restarts_a_docker_that_keeps_its_containers(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, '{"live-restore": true}', containers=3)
    converge(dockerd.host)
    assert converge(dockerd.host, "absent")["restarted"]
    assert (dockerd.default, dockerd.names) == ("runc", {"runc"})


def test_another_default_of_the_site_is_refused_before_anything_changes(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, '{"default-runtime": "kata", "runtimes": {"kata": {"path": "/k"}}}')
    before = dockerd.host.read(FILE)
    with pytest.raises(XpuError, match=r"default-runtime in /etc/docker/daemon.json is 'kata'"):
        converge(dockerd.host)
    assert dockerd.host.read(FILE) == before
    decision = docker.plan(docker.observe(dockerd.host, serves_kubelet=True))
    assert (decision.action, decision.stance) == ("blocked", "refuse")
    # Where no pods are Docker's, every container says which it wants.
    assert docker.plan(docker.observe(dockerd.host)).action == "install"


def test_a_docker_configured_before_the_kubelet_came_is_changed(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None)
    converge(dockerd.host, serves_kubelet=False)
    decision = docker.plan(docker.observe(dockerd.host, serves_kubelet=True))
    assert decision.action == "change"
    assert "default-runtime in /etc/docker/daemon.json is not nvidia-cdi" in decision.reason


def test_the_verdict_asks_dockerd_for_its_default(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None)
    for program in docker.PROGRAMS_OF.values():
        hostroot.put(tmp_path, program, "", 0o755)
    converge(dockerd.host)
    assert judge.judge_runtime(dockerd.host, "cri-dockerd").state == "ok"
    dockerd.default = "runc"
    found = judge.judge_runtime(dockerd.host, "cri-dockerd")
    assert found.state == "failed"
    assert "default runtime is runc; pods with slices need nvidia-cdi" in found.reason
    assert judge.judge_runtime(dockerd.host, "docker").state == "ok"


# -- images ----------------------------------------------------------------------------------


def archive(root: Path) -> Artefact:
    """An OCI archive where role images puts it."""
    image = Artefact(
        "a", "v1", "noarch", "image", "a.tar", "a.tar", "0" * 64, "", "docker.io/library/a:v1",
        MANIFEST,
    )  # fmt: skip
    path = root / image.host_path.lstrip("/")
    path.parent.mkdir(parents=True)
    data = json.dumps({"config": {"digest": CONFIGURATION}}).encode()
    with tarfile.open(path, "w") as members:
        member = tarfile.TarInfo(f"blobs/sha256/{MANIFEST.partition(':')[2]}")
        member.size = len(data)
        members.addfile(member, io.BytesIO(data))
    return image


def test_images_come_to_docker_once_and_are_known_by_the_manifests_digest(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None)
    store, image = node_images.store_of(dockerd.host, "cri-dockerd"), archive(tmp_path)
    wanted = {image.image: image.image_digest}
    assert judge.judge_images(dockerd.host, wanted, "cri-dockerd").state == "absent"
    assert node_images.present(dockerd.host, store, [image], False)["missing"] == [image.image]
    assert not node_images.present(dockerd.host, store, [image], False)["changed"]
    assert images.observe(dockerd.host, wanted, "cri-dockerd") == wanted
    assert judge.judge_images(dockerd.host, wanted, "cri-dockerd").state == "ok"
    assert not any(line.startswith("ctr") for line in dockerd.ran)


def test_another_image_under_the_name_is_replaced(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None)
    dockerd.images["a:v1"] = "sha256:" + "9" * 64
    image = archive(tmp_path)
    wanted = {image.image: image.image_digest}
    assert judge.judge_images(dockerd.host, wanted, "cri-dockerd").state == "absent"
    store = node_images.store_of(dockerd.host, "cri-dockerd")
    assert node_images.present(dockerd.host, store, [image], False)["changed"]
    assert dockerd.images["a:v1"] == CONFIGURATION


def test_an_archive_without_the_promised_manifest_is_named(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None)
    image = dataclasses.replace(archive(tmp_path), image_digest="sha256:" + "8" * 64)
    store = node_images.store_of(dockerd.host, "cri-dockerd")
    with pytest.raises(XpuError, match="is no OCI archive with the manifest sha256:8888"):
        node_images.present(dockerd.host, store, [image], False)
    assert dockerd.images == {}


def test_an_image_that_a_pod_uses_stays_and_another_goes_with_its_records(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None, containers=1)
    store, image = node_images.store_of(dockerd.host, "cri-dockerd"), archive(tmp_path)
    node_images.present(dockerd.host, store, [image], False)
    assert node_images.absent(dockerd.host, store, False)["left"] == [
        "image docker.io/library/a:v1: used by pod xpu/p"
    ]
    dockerd.containers = 0
    assert node_images.absent(dockerd.host, store, False)["changed"]
    assert dockerd.images == {}
    assert not dockerd.host.exists("/var/lib/flexai-xpu")


def test_the_records_go_too_where_somebody_removed_the_image(tmp_path: Path) -> None:
    dockerd = Dockerd(tmp_path, None)
    store, image = node_images.store_of(dockerd.host, "cri-dockerd"), archive(tmp_path)
    node_images.present(dockerd.host, store, [image], False)
    dockerd.images.clear()
    assert node_images.absent(dockerd.host, store, False)["changed"]
    assert not dockerd.host.exists("/var/lib/flexai-xpu")


def test_a_docker_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    host = Host(str(tmp_path), lambda _argv, _timeout_s: Completed(NOT_FOUND, "", ""))
    with pytest.raises(XpuError, match="docker is not installed on this host"):
        node_images.store_of(host, "cri-dockerd").listed()


@pytest.mark.parametrize(
    ("shown", "full"),
    [
        ("a:v1", "docker.io/library/a:v1"),
        ("site/a:v1", "docker.io/site/a:v1"),
        ("registry.site/a:v1", "registry.site/a:v1"),
        ("registry:5000/a:v1", "registry:5000/a:v1"),
        ("localhost/a:v1", "localhost/a:v1"),
    ],
)
def test_names_are_compared_as_the_manifest_writes_them(shown: str, full: str) -> None:
    assert images.full_reference(shown) == full


# -- the cluster -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("docker://20.10.24", "flexai-xpu-docker"),
        ("containerd://1.6.20", "flexai-xpu"),
        ("", "flexai-xpu"),
    ],
)
def test_the_check_from_within_takes_the_class_that_the_node_can_serve(
    version: str, wanted: str
) -> None:
    node = {"status": {"nodeInfo": {"containerRuntimeVersion": version}}}
    assert slice_check.runtime_class_of(node) == wanted
