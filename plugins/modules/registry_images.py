#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: registry_images
short_description: Push container images to a registry
version_added: 0.1.0
description:
  - Compares images by manifest digest with what a registry has under their names and tags, and
    pushes the OCI archives of those that are missing or differ. Runs on the controller, where the
    archives are; no container engine is needed.
  - An image C(docker.io/library/name:tag) becomes C(registry/path/name:tag).
options:
  registry:
    description:
      - Registry and path before the images' names, as C(registry.site:5000/flexai). C(http://)
        before it where the registry speaks no TLS; no credentials are sent then, unless it is this
        machine.
    type: str
    required: true
  username:
    description: User who may push. Empty where the registry asks for none.
    type: str
    default: ""
  password:
    description: The user's password or token. It is never shown, and in no URL or command line.
    type: str
    default: ""
  ca_file:
    description: File with the CA of the registry's certificate, where the machine doesn't know it.
    type: path
  images:
    description: The images, each as its entry in the artefact manifest.
    type: list
    elements: dict
    required: true
  directory:
    description: Directory of the manifest, which the images' sources are relative to.
    type: path
    required: true
extends_documentation_fragment:
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have every image of the manifest in the site's registry
  flexai.xpu.registry_images:
    registry: registry.site:5000/flexai
    username: pusher
    password: "{{ vault_registry_password }}"
    images: "{{ manifest.artefacts | selectattr('kind', 'eq', 'image') }}"
    directory: /srv/flexai
  delegate_to: localhost
"""

RETURN = r"""
missing:
  description: References that were missing, or had another digest, before.
  returned: success
  type: list
  elements: str
prefix:
  description: What goes before an image's name in a pod.
  returned: success
  type: str
"""

import contextlib
import ssl
import tarfile
import typing as t
from pathlib import Path
from urllib.error import HTTPError, URLError

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._artefacts import Artefact
from ..module_utils._errors import XpuError, run_module
from ..module_utils._registry import Answer, Client, Image, Registry, Send, parse_registry

# A layer's upload may take long; this is the longest silence.
SILENCE_S = 120


def sender(ca_file: str | None) -> Send:
    from ansible.module_utils.urls import Request

    session = Request(
        context=ssl.create_default_context(cafile=ca_file),
        timeout=SILENCE_S,
        # Neither a redirect nor ~/.netrc may decide who gets credentials.
        follow_redirects="none",
        use_netrc=False,
    )

    def send(verb: str, url: str, headers: t.Mapping[str, str], body: t.Any) -> Answer:
        try:
            answer = session.open(verb, url, data=body, headers=dict(headers))
        except HTTPError as error:
            answer = error
        except (URLError, OSError) as error:
            raise XpuError(
                f"{verb} {url.partition('?')[0]} failed: {getattr(error, 'reason', error)}.",
                "check images_registry, images_registry_ca_file and the controller's proxy.",
            ) from error
        with answer:
            lowered = {key.lower(): value for key, value in answer.headers.items()}
            return Answer(int(answer.code), lowered, answer.read())

    return send


@contextlib.contextmanager
def opened(directory: str, artefact: Artefact) -> t.Iterator[Image]:
    """The artefact's archive, when it is the image that the manifest promises."""
    if artefact.is_remote:
        raise XpuError(
            f"Image {artefact.image} has the URL {artefact.source} as its source; only a file can "
            "be pushed.",
            "fetch it to the controller and name the file as source in the manifest.",
        )
    path = Path(artefact.source_in(directory))
    if not path.exists():
        raise XpuError(
            f"The archive {path} of {artefact.image} does not exist.",
            "put the file there, or correct source in the manifest.",
        )
    with tarfile.open(path) as archive:
        image = Image(archive)
        if image.digest != artefact.image_digest:
            raise XpuError(
                f"{path} holds an image with digest {image.digest}, the manifest says "
                f"{artefact.image_digest}.",
                "correct source or image_digest in the artefact manifest.",
            )
        yield image


def _lines(found: t.Mapping[str, str]) -> str:
    return "".join(f"{name} {digest or 'absent'}\n" for name, digest in sorted(found.items()))


def converge(
    client: Client, registry: Registry, directory: str, images: t.Sequence[Artefact], check: bool
) -> dict[str, t.Any]:
    found, missing = {}, []
    for artefact in images:
        repository, tag = registry.repository(artefact.image)
        name = f"{registry.host}/{repository}:{tag}"
        found[name] = client.digest(repository, tag)
        if found[name] == artefact.image_digest:
            continue
        missing.append(name)
        if check:
            continue
        with opened(directory, artefact) as image:
            client.push(image, repository, tag)
        there = client.digest(repository, tag)
        if there != artefact.image_digest:
            raise XpuError(
                f"After the push {name} has digest {there or 'none'}, the manifest says "
                f"{artefact.image_digest}.",
                "look at the registry's log; something between it and us changes what is pushed.",
            )
    wanted = {name: artefact.image_digest for name, artefact in zip(found, images)}
    return {
        "changed": bool(missing),
        "missing": missing,
        "prefix": registry.prefix,
        "diff": {"before": _lines(found), "after": _lines(wanted)},
    }


def _body(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    registry = parse_registry(params["registry"])
    client = Client(sender(params["ca_file"]), registry, params["username"], params["password"])
    images = [Artefact(**entry) for entry in params["images"]]
    return converge(client, registry, params["directory"], images, module.check_mode)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "registry": {"type": "str", "required": True},
            "username": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "path"},
            "images": {"type": "list", "elements": "dict", "required": True},
            "directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    run_module(module, _body)


if __name__ == "__main__":
    main()
