# SPDX-License-Identifier: GPL-3.0-or-later
"""Controllers that a site may have beside the collection: KEDA and LeaderWorkerSet, from their Go
modules, with the manifests that lie in them.

The images run on the control plane's node: no test drains or loses it, and one node has to import
them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from xpubuild import oci
from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs, module_directory, run

from ..cluster.config import CONTROL_PLANE_ROLE
from . import kubernetes

MODULES = REPOSITORY / "tests/testbed/modules"
ARCHIVE, DIGEST, MANIFEST = "image.tar", "image.digest", "manifest.yaml"
# Any number but root's: Kubernetes checks by it that nobody is root.
USER = "65532:65532"


@dataclass(frozen=True)
class Controller:
    """One of them. ``programs`` is path in the image → package, ``base`` upstream's kustomization
    below its module, ``images`` what the manifests there call their images. ``deployments`` are in
    ``namespace``."""

    name: str
    version: str
    upstream: str
    programs: Mapping[str, str]
    base: str
    images: tuple[str, ...]
    namespace: str
    deployments: tuple[str, ...]

    @property
    def module(self) -> Path:
        return MODULES / self.name

    @property
    def image(self) -> str:
        return f"testbed.invalid/{self.name}:{self.version}"


KEDA = Controller(
    name="keda",
    version="v2.20.2",
    upstream="github.com/kedacore/keda/v2",
    programs={"/keda": "cmd/operator", "/keda-adapter": "cmd/adapter"},
    base="config/minimal",
    images=("ghcr.io/kedacore/keda", "ghcr.io/kedacore/keda-metrics-apiserver"),
    namespace="keda",
    deployments=("keda-operator", "keda-metrics-apiserver"),
)
LWS = Controller(
    name="lws",
    version="v0.8.0",
    upstream="sigs.k8s.io/lws",
    programs={"/manager": "cmd"},
    base="config/default",
    images=("us-central1-docker.pkg.dev/k8s-staging-images/lws/lws",),
    namespace="lws-system",
    deployments=("lws-controller-manager",),
)


def _replacement(path: str, value: object) -> dict[str, object]:
    """JSON patch's "add" replaces what is there."""
    return {"op": "add", "path": path, "value": value}


def kustomization(controller: Controller) -> dict[str, Any]:
    """Upstream's manifests with our image, on the control plane, at a testbed's price."""
    container, pod = "/spec/template/spec/containers/0", "/spec/template/spec"
    patch = [
        _replacement("/spec/replicas", 1),
        _replacement(f"{container}/imagePullPolicy", "Never"),
        _replacement(f"{container}/resources", {"requests": {"cpu": "20m", "memory": "64Mi"}}),
        # It says itself when it is ready.
        _replacement(f"{container}/readinessProbe/initialDelaySeconds", 1),
        _replacement(f"{container}/readinessProbe/periodSeconds", 1),
        # A machine that does ten other things is no reason to start it again.
        _replacement(f"{container}/livenessProbe/timeoutSeconds", 60),
        _replacement(f"{pod}/nodeSelector", {CONTROL_PLANE_ROLE: ""}),
        _replacement(f"{pod}/tolerations", [{"key": CONTROL_PLANE_ROLE, "effect": "NoSchedule"}]),
    ]
    name, _colon, tag = controller.image.rpartition(":")
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [controller.base],
        "images": [{"name": old, "newName": name, "newTag": tag} for old in controller.images],
        "patches": [{"target": {"kind": "Deployment"}, "patch": json.dumps(patch)}],
    }


def _manifest(cache: Cache, controller: Controller, out: Path) -> None:
    source = module_directory(controller.module, controller.upstream)
    work = out / "work"
    # Files of the module cache can't be written, and neither can copies of its directories.
    shutil.copytree(source / "config", work / "config", copy_function=shutil.copyfile)
    for directory in [work, *(path for path in work.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)
    (work / "kustomization.yaml").write_text(yaml.safe_dump(kustomization(controller)))
    kubectl = kubernetes.build(cache) / "kubectl"
    (out / MANIFEST).write_text(run([kubectl, "kustomize", work]), encoding="utf-8")
    shutil.rmtree(work)


def build(cache: Cache, controller: Controller) -> Path:
    """``image.tar`` and ``image.digest``, and ``manifest.yaml`` with everything to apply."""

    def programs(out: Path) -> None:
        outputs = {
            out / path.lstrip("/"): f"{controller.upstream}/{package}"
            for path, package in controller.programs.items()
        }
        go_build(controller.module, outputs)

    # Minutes of a processor: an edit of this file that changes nothing of them costs none.
    built = cache.get(
        Recipe(
            f"{controller.name}-programs",
            go_inputs(
                controller.module,
                controller.module / "tools.go",
                programs=json.dumps(dict(controller.programs)),
            ),
            programs,
        )
    )

    def pack(out: Path) -> None:
        paths = {path: built / path.lstrip("/") for path in controller.programs}
        files: dict[str, oci.Source] = {**paths, "/tmp": oci.Directory(0o1777)}
        config = oci.Config(entrypoint=[next(iter(controller.programs))], user=USER)
        digest = oci.write_archive(out / ARCHIVE, controller.image, [files], config)
        (out / DIGEST).write_text(digest + "\n", encoding="utf-8")
        _manifest(cache, controller, out)

    inputs = {
        "programs": built.name,
        "recipe": digest_file(Path(__file__)),
        "writer": digest_file(Path(oci.__file__)),
        "kustomize": kubernetes.VERSION,
    }
    return cache.get(Recipe(controller.name, inputs, pack))
