# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Container images on a host, compared by manifest digest."""

from __future__ import annotations

import json
import typing as t

from ._decision import CHANGE, INSTALL, OK, Decision
from ._host import Host

COMPONENT = "images"
# What we imported on this host: reference → digest. An image that was there before isn't in it.
RECORD = "/var/lib/flexai-xpu/images.json"
# Docker names an image by its configuration: that → digest of the manifest, of what we loaded.
DOCKER_RECORD = "/var/lib/flexai-xpu/docker_images.json"
RUNNING = ("CREATED", "RUNNING", "PAUSED", "PAUSING")


class Container(t.NamedTuple):
    """A container of containerd; ``sandbox`` is the one that keeps its pod together, or itself."""

    name: str
    image: str
    sandbox: str


def parse_references(text: str) -> dict[str, str]:
    """``ctr images ls``: every reference → manifest digest. The columns are REF TYPE DIGEST …"""
    found = {}
    for line in text.splitlines():
        digests = [word for word in line.split()[1:] if word.startswith("sha256:")]
        if digests:
            found[line.split()[0]] = digests[0]
    return found


def is_companion(reference: str) -> bool:
    """Whether the CRI plugin made it beside a name: by configuration's or manifest's digest."""
    return reference.startswith("sha256:") or "@sha256:" in reference


def parse_ctr_list(text: str) -> dict[str, str]:
    """``ctr images ls``: name → manifest digest."""
    found = parse_references(text)
    return {name: digest for name, digest in found.items() if not name.startswith("sha256:")}


def read_record(text: str | None) -> dict[str, str]:
    found: dict[str, str] = json.loads(text or "{}")
    return found


def render_record(record: t.Mapping[str, str]) -> str:
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def parse_running(text: str) -> set[str]:
    """``ctr tasks ls``: containers with a task that has not ended. Columns: TASK PID STATUS."""
    rows = (line.split() for line in text.splitlines())
    return {row[0] for row in rows if len(row) == 3 and row[2] in RUNNING}


def parse_container(text: str) -> Container:
    """``ctr containers info``."""
    data = json.loads(text)
    notes = (data.get("Spec") or {}).get("annotations") or {}
    meta = data.get("Labels") or {}
    pod = f"{meta.get('io.kubernetes.pod.namespace')}/{meta.get('io.kubernetes.pod.name')}"
    in_pod = "io.kubernetes.pod.name" in meta
    return Container(
        name=f"pod {pod}" if in_pod else f"container {data['ID'][:12]}",
        image=data.get("Image") or "",
        sandbox=notes.get("io.kubernetes.cri.sandbox-id") or data["ID"],
    )


def users(
    containers: t.Mapping[str, Container], running: t.Collection[str], found: t.Mapping[str, str]
) -> dict[str, list[str]]:
    """Digest → who uses it: a container that runs, or one whose pod does and may start it again."""
    using: dict[str, list[str]] = {}
    for identity, container in containers.items():
        if identity in running or container.sandbox in running:
            using.setdefault(found.get(container.image, container.image), []).append(container.name)
    return using


class Removal(t.NamedTuple):
    """What to take away: ``references`` from containerd, ``forgotten`` from the record only."""

    references: tuple[str, ...]
    forgotten: tuple[str, ...]
    left: tuple[str, ...]


def plan_removal(
    record: t.Mapping[str, str], found: t.Mapping[str, str], using: t.Mapping[str, t.Sequence[str]]
) -> Removal:
    """Of what we imported, what is still that image and used by nobody."""
    references: list[str] = []
    forgotten: list[str] = []
    left: list[str] = []
    going: dict[str, list[str]] = {}
    for name, digest in sorted(record.items()):
        if digest in using and found.get(name) == digest:
            left.append(f"image {name}: used by {', '.join(sorted(set(using[digest])))}")
            continue
        forgotten.append(name)
        if found.get(name) == digest:
            going.setdefault(digest, []).append(name)
        elif name in found:
            left.append(f"image {name}: another one ({found[name]}) than we imported ({digest})")
    for digest, names in going.items():
        others = [name for name, there in found.items() if there == digest and name not in names]
        named = [name for name in others if not is_companion(name)]
        # Under another name it stays whole: somebody gave it that.
        references += names if named else [*names, *others]
    return Removal(tuple(references), tuple(forgotten), tuple(left))


def full_reference(name: str) -> str:
    """Docker shows ``docker.io/library/a:v1`` as ``a:v1``."""
    registry, slash, _rest = name.partition("/")
    if slash and ("." in registry or ":" in registry or registry == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


DOCKER_LIST = [
    "docker",
    "image",
    "ls",
    "--no-trunc",
    "--format",
    "{{.Repository}}:{{.Tag}} {{.ID}}",
]


def parse_docker_list(text: str, manifests: t.Mapping[str, str]) -> dict[str, str]:
    """DOCKER_LIST's answer: name → manifest digest where we loaded it, else Docker's own name."""
    rows = [line.split() for line in text.splitlines()]
    return {
        full_reference(row[0]): manifests.get(row[1], row[1])
        for row in rows
        if len(row) == 2 and "<none>" not in row[0]
    }


DOCKER_INSPECT = [
    "docker", "inspect", "--type", "container", "--format",
    '{"ID": {{json .Id}}, "Image": {{json .Image}}, "Running": {{json .State.Running}}, '
    '"Labels": {{json .Config.Labels}}}',
]  # fmt: skip


def parse_docker_container(line: str, manifests: t.Mapping[str, str]) -> tuple[Container, bool]:
    """A line of DOCKER_INSPECT's answer: the container, and whether it runs."""
    data = json.loads(line)
    meta = data["Labels"] or {}
    pod = f"{meta.get('io.kubernetes.pod.namespace')}/{meta.get('io.kubernetes.pod.name')}"
    in_pod = "io.kubernetes.pod.name" in meta
    container = Container(
        name=f"pod {pod}" if in_pod else f"container {data['ID'][:12]}",
        image=manifests.get(data["Image"], data["Image"]),
        sandbox=meta.get("io.kubernetes.sandbox.id") or data["ID"],
    )
    return container, bool(data["Running"])


def observe(host: Host, wanted: t.Mapping[str, str], engine: str = "containerd") -> dict[str, str]:
    """Images of the kubelet's engine; no program is asked when none is wanted."""
    if not wanted:
        return {}
    if engine == "cri-dockerd":
        listed = host.run(DOCKER_LIST, timeout_s=30)
        manifests = read_record(host.read(DOCKER_RECORD))
        return parse_docker_list(listed.out, manifests) if listed.rc == 0 else {}
    done = host.run(["ctr", "-n", "k8s.io", "images", "ls"], timeout_s=30)
    return parse_ctr_list(done.out) if done.rc == 0 else {}


def plan(found: t.Mapping[str, str], wanted: t.Mapping[str, str]) -> Decision:
    lacking = [name for name, digest in sorted(wanted.items()) if found.get(name) != digest]
    have = len(wanted) - len(lacking)
    summary = (f"{len(wanted)} images", f"{have} images")
    if not lacking:
        return Decision(COMPONENT, OK, *summary)
    return Decision(
        COMPONENT, CHANGE if have else INSTALL, *summary, "missing: " + ", ".join(lacking)
    )
