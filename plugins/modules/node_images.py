#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_images
short_description: Import container images into the kubelet's container engine
version_added: 0.1.0
description:
  - Compares images by manifest digest with what containerd holds for the kubelet, or Docker where
    cri-dockerd leads there, and imports the OCI archives of those that are missing or differ.
  - A running container keeps the image it was started from.
  - What was imported is recorded in C(/var/lib/flexai-xpu/images.json); an image that was there
    before is not. Docker names an image by its configuration, so C(docker_images.json) beside it
    says which manifest that belongs to.
options:
  images:
    description:
      - The images, each as its entry in the artefact manifest (C(docs/interfaces.md) section 2).
        The archive of an image to import lies where M(flexai.xpu.artefact) puts it.
      - Needed when O(state=present).
    type: list
    elements: dict
  engine:
    description:
      - The engine of the host's kubelet, as role C(container_runtime) names it. V(cri-dockerd) is
        Docker's store, every other containerd's.
    type: str
    choices: [auto, containerd, crio, docker, cri-dockerd]
    default: auto
  state:
    description:
      - V(absent) removes the images that the record names, when they still have the digest that we
        imported, and no container of a running pod uses them.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have every image of the manifest on the node
  flexai.xpu.node_images:
    images: "{{ manifest.artefacts | selectattr('kind', 'eq', 'image') }}"
"""

RETURN = r"""
missing:
  description: References that were missing or had another digest before.
  returned: success
  type: list
  elements: str
left:
  description: What was not removed, each with the reason.
  returned: success
  type: list
  elements: str
"""

import json
import os
import tarfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _images
from ..module_utils._artefacts import Artefact
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import NOT_FOUND, Completed, Host
from ..module_utils._plan import choose_engine

ENGINES = ["auto", "containerd", "crio", "docker", "cri-dockerd"]

LIST_LIMIT_S = 60
IMPORT_LIMIT_S = 900
NAMESPACE = "k8s.io"


class Store(t.Protocol):
    """Where the kubelet's images are. Digests are of manifests."""

    directory: str

    def listed(self) -> dict[str, str]:
        """Every name, and companions of names, → digest."""

    def load(self, image: Artefact, archive: str) -> Completed:
        """Have an archive's image there."""

    def using(self, found: t.Mapping[str, str]) -> dict[str, list[str]]:
        """Digest → who uses it."""

    def remove(self, names: t.Sequence[str]) -> None:
        """Take names away, and what is known of images that have none any more."""


def _ask(host: Host, argv: t.Sequence[str], unit: str) -> str:
    """An engine that does not answer is an error: nothing would be known."""
    done = host.run(list(argv), timeout_s=LIST_LIMIT_S)
    if done.rc == NOT_FOUND:
        raise XpuError(
            f"{argv[0]} is not installed on this host, so it has no {unit} to import images into.",
            f"install {unit}, or take the host out of flexai_kubernetes.",
        )
    if done.rc != 0:
        raise XpuError(
            f"{' '.join(argv)} gave rc {done.rc}: {done.err.strip()}.",
            f"look at `systemctl status {unit}`, start it, and run again.",
        )
    return done.out


class Containerd:
    directory = "/var/lib/containerd"

    def __init__(self, host: Host) -> None:
        self._host = host

    def _ctr(self, *arguments: str) -> str:
        return _ask(self._host, ["ctr", "-n", NAMESPACE, *arguments], "containerd")

    def listed(self) -> dict[str, str]:
        return _images.parse_references(self._ctr("images", "ls"))

    def load(self, _image: Artefact, archive: str) -> Completed:
        argv = ["ctr", "-n", NAMESPACE, "images", "import", archive]
        return self._host.run(argv, timeout_s=IMPORT_LIMIT_S)

    def using(self, found: t.Mapping[str, str]) -> dict[str, list[str]]:
        containers = {}
        for identity in self._ctr("containers", "ls", "--quiet").split():
            done = self._host.run(["ctr", "-n", NAMESPACE, "containers", "info", identity])
            if done.rc == 0:  # else it has gone since, as those of ended pods do
                containers[identity] = _images.parse_container(done.out)
        running = _images.parse_running(self._ctr("tasks", "ls"))
        return _images.users(containers, running, found)

    def remove(self, names: t.Sequence[str]) -> None:
        if names:
            self._ctr("images", "rm", "--sync", *names)


class Docker:
    """Docker's images, where a kubelet uses them by cri-dockerd."""

    directory = "/var/lib/docker"

    def __init__(self, host: Host) -> None:
        self._host = host

    def _manifests(self) -> dict[str, str]:
        return _images.read_record(self._host.read(_images.DOCKER_RECORD))

    def listed(self) -> dict[str, str]:
        listed = _ask(self._host, _images.DOCKER_LIST, "docker")
        return _images.parse_docker_list(listed, self._manifests())

    def load(self, image: Artefact, archive: str) -> Completed:
        configuration = configuration_of(archive, image.image_digest)
        # Recorded first: killed between the two, a record of what isn't there does no harm.
        record = {**self._manifests(), configuration: image.image_digest}
        self._host.write(_images.DOCKER_RECORD, _images.render_record(record), mode=0o600)
        return self._host.run(["docker", "load", "--input", archive], timeout_s=IMPORT_LIMIT_S)

    def using(self, found: t.Mapping[str, str]) -> dict[str, list[str]]:
        identities = _ask(
            self._host, ["docker", "ps", "--all", "--quiet", "--no-trunc"], "docker"
        ).split()
        if not identities:
            return {}
        # One that has gone since makes the answer's code another, not the other lines.
        said = self._host.run([*_images.DOCKER_INSPECT, *identities], timeout_s=LIST_LIMIT_S).out
        manifests = self._manifests()
        containers, running = {}, set()
        for line in said.splitlines():
            if line.startswith("{"):
                identity = json.loads(line)["ID"]
                containers[identity], runs = _images.parse_docker_container(line, manifests)
                running |= {identity} if runs else set()
        return _images.users(containers, running, found)

    def remove(self, names: t.Sequence[str]) -> None:
        if names:  # by force, or containers of ended pods would keep them
            _ask(self._host, ["docker", "image", "rm", "--force", *names], "docker")
        left = set(self.listed().values())
        record = {name: digest for name, digest in self._manifests().items() if digest in left}
        if record:
            self._host.write(_images.DOCKER_RECORD, _images.render_record(record), mode=0o600)
        else:
            self._host.remove(_images.DOCKER_RECORD)


def configuration_of(archive: str, digest: str) -> str:
    """Digest of the configuration of the image *digest* in an OCI archive."""
    try:
        with tarfile.open(archive) as members:
            manifest = members.extractfile(f"blobs/sha256/{digest.partition(':')[2]}")
            return str(json.load(manifest)["config"]["digest"]) if manifest else ""
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise XpuError(
            f"{archive} is no OCI archive with the manifest {digest} ({error}).",
            "correct file or image_digest in the artefact manifest.",
        ) from error


def store_of(host: Host, engine: str) -> Store:
    return Docker(host) if engine == "cri-dockerd" else Containerd(host)


def observe(store: Store) -> dict[str, str]:
    """Name → digest."""
    found = store.listed().items()
    return {name: digest for name, digest in found if not name.startswith("sha256:")}


def missing(found: t.Mapping[str, str], wanted: t.Iterable[Artefact]) -> list[Artefact]:
    return [image for image in wanted if found.get(image.image) != image.image_digest]


def import_archive(host: Host, store: Store, image: Artefact) -> None:
    """Import one archive, and see for ourselves that it brought what the manifest promised."""
    if not host.exists(image.host_path):
        raise XpuError(
            f"The archive {image.host_path} of {image.image} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    done = store.load(image, host.path(image.host_path))
    if done.rc != 0:
        raise XpuError(
            f"Importing {image.image} gave rc {done.rc}: {(done.err or done.out).strip()}.",
            f"check the room under {store.directory} and the archive's digest, then run again.",
        )
    found = observe(store).get(image.image, "")
    if found != image.image_digest:
        raise XpuError(
            f"After the import {image.image} has digest {found or 'none'}, "
            f"the manifest says {image.image_digest}.",
            "correct image or image_digest in the artefact manifest.",
        )


def _lines(found: t.Mapping[str, str], images: t.Iterable[Artefact]) -> str:
    return "".join(f"{image.image} {found.get(image.image, 'absent')}\n" for image in images)


def remember(host: Host, imported: t.Mapping[str, str], forgotten: t.Collection[str] = ()) -> None:
    """Bring the record up to date; it goes with its last entry."""
    record = {**_images.read_record(host.read(_images.RECORD)), **imported}
    record = {name: digest for name, digest in record.items() if name not in forgotten}
    if record:
        host.write(_images.RECORD, _images.render_record(record), mode=0o600)
    else:
        host.remove(_images.RECORD)
        host.remove_empty(os.path.dirname(_images.RECORD))


def present(
    host: Host, store: Store, wanted: t.Sequence[Artefact], check: bool
) -> dict[str, t.Any]:
    found = observe(store)
    lacking = missing(found, wanted)
    for image in () if check else lacking:
        # Recorded first: killed between the two, a record of what isn't there does no harm.
        remember(host, {image.image: image.image_digest})
        import_archive(host, store, image)
    after = {image.image: image.image_digest for image in wanted}
    return {
        "changed": bool(lacking),
        "missing": [image.image for image in lacking],
        "left": [],
        "diff": {"before": _lines(found, wanted), "after": _lines(after, wanted)},
    }


def absent(host: Host, store: Store, check: bool) -> dict[str, t.Any]:
    record = _images.read_record(host.read(_images.RECORD))
    if not record:
        return {"changed": False, "missing": [], "left": [], "diff": {"before": "", "after": ""}}
    found = store.listed()
    removal = _images.plan_removal(record, found, store.using(found))
    if not check:
        store.remove(removal.references)
        remember(host, {}, removal.forgotten)
    return {
        "changed": bool(removal.forgotten),
        "missing": [],
        "left": list(removal.left),
        "diff": {
            "before": "".join(f"{name} {found[name]}\n" for name in removal.references),
            "after": "".join(f"{name} absent\n" for name in removal.references),
        },
    }


def _body(module: AnsibleModule) -> dict[str, t.Any]:
    host = Host(module.params["root"])
    store = store_of(host, choose_engine(host, module.params["engine"]))
    if module.params["state"] == "absent":
        return absent(host, store, module.check_mode)
    wanted = [Artefact(**entry) for entry in module.params["images"]]
    return present(host, store, wanted, module.check_mode)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "images": {"type": "list", "elements": "dict"},
            "engine": {"type": "str", "choices": ENGINES, "default": "auto"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("images",))],
        supports_check_mode=True,
    )
    run_module(module, _body)


if __name__ == "__main__":
    main()
