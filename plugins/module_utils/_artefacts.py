# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The artefact manifest: what can be installed, where it comes from, and its digest (pure)."""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import asdict, dataclass, replace

from ._errors import XpuError

CACHE = "/var/cache/flexai-xpu"
KINDS = ("run", "tarball", "image", "chart", "binary")
ARCHITECTURES = ("x86_64", "aarch64", "noarch")
REQUIRED = ("name", "version", "arch", "kind", "file", "source", "sha256")
OPTIONAL = ("licence", "image", "image_digest", "origin")
# In place of a digest that can't be known in advance: the site's lock file records it when the file
# is used for the first time. Only for vendors' files; ours and images are known by their digests.
FIRST_USE = "first-use"
FIRST_USE_KINDS = ("run", "tarball")
OURS = ("xpu-runtime",)
MANIFEST = "the manifest"
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Artefact:
    name: str
    version: str
    arch: str
    kind: str
    file: str
    source: str
    sha256: str
    licence: str = ""
    image: str = ""
    image_digest: str = ""
    # In a bundle: the source of the manifest that it was made from.
    origin: str = ""
    # Who says what the digest is; a lock file of the site where the manifest doesn't.
    pinned_by: str = MANIFEST

    @property
    def is_pinned(self) -> bool:
        """Whether its digest is known."""
        return self.sha256 != FIRST_USE

    @property
    def host_path(self) -> str:
        """Where it lies on a host; the digest in the path keeps versions and builds apart."""
        return f"{CACHE}/{self.sha256}/{self.file}"

    @property
    def is_remote(self) -> bool:
        return self.source.startswith(("http://", "https://"))

    def source_in(self, directory: str) -> str:
        """Where the controller finds it: a URL, or a file beside the manifest."""
        if self.is_remote:
            return self.source
        return os.path.normpath(os.path.join(directory, os.path.expanduser(self.source)))

    @property
    def bundle_path(self) -> str:
        """Where it lies in a bundle: as on a host, below the directory of the manifest."""
        return f"{self.sha256}/{self.file}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def _fault(entry: t.Mapping[str, t.Any]) -> str:
    missing = [key for key in REQUIRED if not entry.get(key)]
    if missing:
        return "lacks " + ", ".join(missing)
    unknown = [key for key in entry if key not in REQUIRED + OPTIONAL]
    if unknown:
        return "has unknown keys " + ", ".join(sorted(unknown))
    if entry["kind"] not in KINDS:
        return f"has kind {entry['kind']!r}, not one of {', '.join(KINDS)}"
    if entry["arch"] not in ARCHITECTURES:
        return f"has arch {entry['arch']!r}, not one of {', '.join(ARCHITECTURES)}"
    if "/" in str(entry["file"]) or str(entry["file"]) in (".", ".."):
        return f"has file {entry['file']!r}, not a plain file name"
    if entry["sha256"] == FIRST_USE:
        return _first_use_fault(entry)
    if not _SHA256.match(str(entry["sha256"])):
        return f"has sha256 {entry['sha256']!r}, not 64 lower-case hex digits"
    if entry["kind"] == "image" and not (entry.get("image") and entry.get("image_digest")):
        return "is an image without image and image_digest"
    return ""


def _first_use_fault(entry: t.Mapping[str, t.Any]) -> str:
    if entry["kind"] in FIRST_USE_KINDS and entry["name"] not in OURS:
        return ""
    return (
        f"has sha256 {FIRST_USE}, which is for vendors' files of kind "
        f"{' or '.join(FIRST_USE_KINDS)}; write its digest"
    )


def parse(data: t.Any, where: str) -> list[Artefact]:
    """The entries of a manifest; *where* names it in errors."""
    remedy = f"write {where} as docs/interfaces.md §2 shows, or make it with `make artefacts`."
    if not isinstance(data, dict) or data.get("version") != 1:
        found = data.get("version") if isinstance(data, dict) else type(data).__name__
        raise XpuError(f"{where} is no artefact manifest of version 1 (found {found!r}).", remedy)
    entries = data.get("artefacts")
    if not isinstance(entries, list) or not entries:
        raise XpuError(f"{where} lists no artefacts.", remedy)
    seen: set[tuple[str, str, str]] = set()
    artefacts = []
    for number, entry in enumerate(entries, 1):
        fault = _fault(entry) if isinstance(entry, dict) else "is no mapping"
        if fault:
            name = entry.get("name", f"number {number}") if isinstance(entry, dict) else number
            raise XpuError(f"{where}: artefact {name} {fault}.", remedy)
        artefact = Artefact(**{key: str(value) for key, value in entry.items()})
        key = (artefact.name, artefact.version, artefact.arch)
        if key in seen:
            raise XpuError(f"{where}: artefact {' '.join(key)} stands there twice.", remedy)
        seen.add(key)
        artefacts.append(artefact)
    return artefacts


def candidates(artefacts: t.Iterable[Artefact], name: str, version: str = "") -> list[Artefact]:
    """Entries of this name and version, one per architecture; an empty version means the newest."""
    named = [artefact for artefact in artefacts if artefact.name == name]
    wanted = version or max((artefact.version for artefact in named), default="")
    return [artefact for artefact in named if artefact.version == wanted]


def require(artefacts: t.Sequence[Artefact], name: str, version: str, where: str) -> list[Artefact]:
    """Like candidates(), but an artefact that isn't there is an error that says what is."""
    found = candidates(artefacts, name, version)
    if not found:
        others = sorted({artefact.version for artefact in artefacts if artefact.name == name})
        raise XpuError(
            f"{where} has no artefact {name} {version}; "
            f"it has {', '.join(others) or 'none of it'}.",
            f"add it to {where}, or ask for a version that is there.",
        )
    return found


def for_architecture(found: t.Sequence[Artefact], arch: str) -> Artefact:
    """The entry that fits a host."""
    for artefact in found:
        if artefact.arch in (arch, "noarch"):
            return artefact
    first = found[0]
    there = ", ".join(artefact.arch for artefact in found)
    raise XpuError(
        f"Artefact {first.name} {first.version} is there for {there}, not for {arch}.",
        f"add one with arch: {arch} to the manifest, or take the host out of flexai_nodes.",
    )


def from_bundle(artefact: Artefact, where: str) -> Artefact:
    """The entry as a bundle has it, wherever its manifest says that it came from."""
    if not artefact.is_pinned:
        raise XpuError(
            f"{where}: artefact {artefact.name} {artefact.version} has no digest, so no bundle "
            "holds it.",
            "write the bundle with flexai.xpu.bundle, and name its manifest in flexai_manifest.",
        )
    return replace(artefact, source=artefact.bundle_path)


def check_digest(what: str, found: str, wanted: str, pinned_by: str = MANIFEST) -> None:
    """Refuse a file that isn't the one that manifest or lock file name."""
    if not found:
        raise XpuError(
            f"{what} does not exist; wanted is SHA-256 {wanted}.",
            "put the file there, or correct source in the manifest.",
        )
    if found != wanted:
        raise XpuError(
            f"{what} has SHA-256 {found}, {pinned_by} says {wanted}.",
            f"fetch it from its vendor again; correct {pinned_by} only if you trust the file.",
        )
