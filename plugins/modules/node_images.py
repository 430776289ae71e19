#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_images
short_description: Import container images into the kubelet's containerd
version_added: 0.1.0
description:
  - Compares images by manifest digest with what containerd holds for the kubelet, and imports the
    OCI archives of those that are missing or differ.
  - A running container keeps the image it was started from.
  - What was imported is recorded in C(/var/lib/flexai-xpu/images.json); an image that was there
    before is not.
options:
  images:
    description:
      - The images, each as its entry in the artefact manifest (C(docs/interfaces.md) section 2).
        The archive of an image to import lies where M(flexai.xpu.artefact) puts it.
      - Needed when O(state=present).
    type: list
    elements: dict
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

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _images
from ..module_utils._artefacts import Artefact
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import NOT_FOUND, Host

NAMESPACE = "k8s.io"
LIST_LIMIT_S = 60
IMPORT_LIMIT_S = 900


def _ctr(host: Host, *arguments: str) -> str:
    """A containerd that does not answer is an error: nothing would be known."""
    done = host.run(["ctr", "-n", NAMESPACE, *arguments], timeout_s=LIST_LIMIT_S)
    if done.rc == NOT_FOUND:
        raise XpuError(
            "ctr is not installed on this host, so it has no containerd to import images into.",
            "install containerd, or take the host out of flexai_kubernetes.",
        )
    if done.rc != 0:
        raise XpuError(
            f"ctr {' '.join(arguments)} gave rc {done.rc}: {done.err.strip()}.",
            "look at `systemctl status containerd`, start it, and run again.",
        )
    return done.out


def observe(host: Host) -> dict[str, str]:
    """Name → digest."""
    return _images.parse_ctr_list(_ctr(host, "images", "ls"))


def missing(found: t.Mapping[str, str], wanted: t.Iterable[Artefact]) -> list[Artefact]:
    return [image for image in wanted if found.get(image.image) != image.image_digest]


def import_archive(host: Host, image: Artefact) -> None:
    """Import one archive, and see for ourselves that it brought what the manifest promised."""
    if not host.exists(image.host_path):
        raise XpuError(
            f"The archive {image.host_path} of {image.image} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    argv = ["ctr", "-n", NAMESPACE, "images", "import", host.path(image.host_path)]
    done = host.run(argv, timeout_s=IMPORT_LIMIT_S)
    if done.rc != 0:
        raise XpuError(
            f"Importing {image.image} gave rc {done.rc}: {(done.err or done.out).strip()}.",
            "check the room under /var/lib/containerd and the archive's digest, then run again.",
        )
    found = observe(host).get(image.image, "")
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


def present(host: Host, wanted: t.Sequence[Artefact], check: bool) -> dict[str, t.Any]:
    found = observe(host)
    lacking = missing(found, wanted)
    for image in () if check else lacking:
        # Recorded first: killed between the two, a record of what isn't there does no harm.
        remember(host, {image.image: image.image_digest})
        import_archive(host, image)
    after = {image.image: image.image_digest for image in wanted}
    return {
        "changed": bool(lacking),
        "missing": [image.image for image in lacking],
        "left": [],
        "diff": {"before": _lines(found, wanted), "after": _lines(after, wanted)},
    }


def using(host: Host, found: t.Mapping[str, str]) -> dict[str, list[str]]:
    """Digest → who uses it."""
    containers = {}
    for identity in _ctr(host, "containers", "ls", "--quiet").split():
        done = host.run(["ctr", "-n", NAMESPACE, "containers", "info", identity])
        if done.rc == 0:  # else it has gone since, as those of ended pods do
            containers[identity] = _images.parse_container(done.out)
    return _images.users(containers, _images.parse_running(_ctr(host, "tasks", "ls")), found)


def absent(host: Host, check: bool) -> dict[str, t.Any]:
    record = _images.read_record(host.read(_images.RECORD))
    if not record:
        return {"changed": False, "missing": [], "left": [], "diff": {"before": "", "after": ""}}
    found = _images.parse_references(_ctr(host, "images", "ls"))
    removal = _images.plan_removal(record, found, using(host, found))
    if not check:
        if removal.references:
            _ctr(host, "images", "rm", "--sync", *removal.references)
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
    if module.params["state"] == "absent":
        return absent(host, module.check_mode)
    wanted = [Artefact(**entry) for entry in module.params["images"]]
    return present(host, wanted, module.check_mode)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "images": {"type": "list", "elements": "dict"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("images",))],
        supports_check_mode=True,
    )
    run_module(module, _body)


if __name__ == "__main__":
    main()
