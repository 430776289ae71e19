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
options:
  images:
    description:
      - The images, each as its entry in the artefact manifest (C(docs/interfaces.md) section 2).
        The archive of an image to import lies where M(flexai.xpu.artefact) puts it.
    type: list
    elements: dict
    required: true
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
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._artefacts import Artefact
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import NOT_FOUND, Host
from ..module_utils._images import parse_ctr_list

NAMESPACE = "k8s.io"
LIST_LIMIT_S = 60
IMPORT_LIMIT_S = 900


def observe(host: Host) -> dict[str, str]:
    """Reference → digest. A containerd that does not answer is an error: nothing would be known."""
    done = host.run(["ctr", "-n", NAMESPACE, "images", "ls"], timeout_s=LIST_LIMIT_S)
    if done.rc == NOT_FOUND:
        raise XpuError(
            "ctr is not installed on this host, so it has no containerd to import images into.",
            "install containerd, or take the host out of flexai_kubernetes.",
        )
    if done.rc != 0:
        raise XpuError(
            f"containerd does not answer: ctr images ls gave rc {done.rc}, {done.err.strip()}.",
            "look at `systemctl status containerd` and start it.",
        )
    return parse_ctr_list(done.out)


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


def converge(host: Host, images: t.Sequence[Artefact], check: bool) -> dict[str, t.Any]:
    found = observe(host)
    lacking = missing(found, images)
    if not check:
        for image in lacking:
            import_archive(host, image)
    wanted = {image.image: image.image_digest for image in images}
    return {
        "changed": bool(lacking),
        "missing": [image.image for image in lacking],
        "diff": {"before": _lines(found, images), "after": _lines(wanted, images)},
    }


def _body(module: AnsibleModule) -> dict[str, t.Any]:
    images = [Artefact(**entry) for entry in module.params["images"]]
    return converge(Host(module.params["root"]), images, module.check_mode)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "images": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    run_module(module, _body)


if __name__ == "__main__":
    main()
