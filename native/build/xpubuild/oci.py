# SPDX-License-Identifier: Apache-2.0
"""OCI image archives without a container engine: same content in, same bytes and digests out.

An archive is an OCI image layout in a tar, with the ``manifest.json`` of Docker's own format
beside it, because Docker before 25 (Debian 12's) loads nothing else. Layers are left uncompressed:
they travel between local disks, and a compressor's output may change with its version.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .cache import digest_file

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
# Images carry no time of their own, or the same content would get another digest each day.
CREATED = "1970-01-01T00:00:00Z"


class ImageError(ValueError):
    """What was asked for can't become an image; the message says what and why."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in a layer."""

    target: str


@dataclass(frozen=True)
class Directory:
    """A directory that must exist, or whose mode matters (``/tmp``)."""

    mode: int = 0o755


Source = Path | bytes | Link | Directory
Layer = Path | Mapping[str, Source]


@dataclass(frozen=True)
class Config:
    """How the image runs when nothing else is said."""

    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The ``config`` object of the image configuration; what is empty is left out."""
        fields = {
            "User": self.user,
            "Env": [f"{name}={value}" for name, value in sorted(self.env.items())],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "WorkingDir": self.working_dir,
            "Labels": dict(sorted(self.labels.items())),
        }
        return {key: value for key, value in fields.items() if value}


@dataclass(frozen=True)
class _Blob:
    """One content-addressed member of the archive, on disk or in memory."""

    digest: str
    size: int
    content: Path | bytes

    @property
    def path(self) -> str:
        return f"blobs/sha256/{self.digest}"

    def descriptor(self, media_type: str, **more: Any) -> dict[str, Any]:
        return {
            "mediaType": media_type,
            "digest": f"sha256:{self.digest}",
            "size": self.size,
            **more,
        }


def _file_blob(path: Path) -> _Blob:
    return _Blob(digest_file(path), path.stat().st_size, path)


def _json_blob(document: object) -> _Blob:
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return _Blob(hashlib.sha256(data).hexdigest(), len(data), data)


def _header(name: str, size: int = 0, mode: int = 0o644) -> tarfile.TarInfo:
    """A tar header with nothing of the building machine in it: root's, and from the epoch."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = mode
    return info


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with source.open("rb") as stream:
        yield stream


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _member_name(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or pure == PurePosixPath("/"):
        raise ImageError(
            f"layer path {path!r} is not an absolute path inside the image; write it as /dir/file"
        )
    return str(pure.relative_to("/"))


def _add(archive: tarfile.TarFile, path: str, source: Source) -> None:
    name = _member_name(path)
    if isinstance(source, Directory):
        info = _header(name, mode=source.mode)
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif isinstance(source, Link):
        info = _header(name, mode=0o777)
        info.type = tarfile.SYMTYPE
        info.linkname = source.target
        archive.addfile(info)
    else:
        if isinstance(source, Path) and not source.is_file():
            raise ImageError(f"layer path {path}: {source} is not a regular file")
        executable = isinstance(source, Path) and os.access(source, os.X_OK)
        with _opened(source) as stream:
            archive.addfile(_header(name, _size(source), 0o755 if executable else 0o644), stream)


def layer(out: Path, files: Mapping[str, Source]) -> Path:
    """Write *files*, ``{absolute path in the image: content}``, as an uncompressed layer tar.

    A file keeps its executable bit and nothing else. Parent directories are left to the engine
    that unpacks: naming ``/bin`` here would replace the base image's link ``/bin`` → ``/usr/bin``.
    """
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files):
            _add(archive, path, files[path])
    return out


def check_reference(name: str) -> str:
    """*name*, if it is a full reference (``registry/repository:tag``); else an ImageError.

    Engines complete short names each in their own way, so an image imported under one could not
    be found again.
    """
    repository, _, tag = name.rpartition(":")
    registry, _, rest = repository.partition("/")
    if not tag or "/" in tag or not rest or not ("." in registry or ":" in registry):
        raise ImageError(
            f"image name {name!r} is not a full reference; "
            "write registry and tag too: docker.io/library/pause:v1"
        )
    return name


def _image(layers: Sequence[_Blob], config: Config, arch: str) -> tuple[_Blob, _Blob]:
    """The configuration and manifest blobs of an image."""
    configuration = _json_blob(
        {
            "created": CREATED,
            "architecture": arch,
            "os": "linux",
            "config": config.document(),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{blob.digest}" for blob in layers]},
            "history": [{"created": CREATED, "created_by": "xpubuild.oci"} for _ in layers],
        }
    )
    manifest = _json_blob(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": configuration.descriptor(CONFIG),
            "layers": [blob.descriptor(LAYER) for blob in layers],
        }
    )
    return configuration, manifest


def _index(name: str, manifest: _Blob, arch: str) -> dict[str, Any]:
    # containerd takes the name from the first annotation, Podman from the second.
    annotations = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    }
    platform = {"architecture": arch, "os": "linux"}
    entry = manifest.descriptor(MANIFEST, platform=platform, annotations=annotations)
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}


def _pack(
    out: Path, name: str, layers: Sequence[_Blob], configuration: _Blob, manifest: _Blob, arch: str
) -> None:
    docker = [
        {
            "Config": configuration.path,
            "RepoTags": [name],
            "Layers": [blob.path for blob in layers],
        }
    ]
    documents: dict[str, Path | bytes] = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": _bytes(_index(name, manifest, arch)),
        "manifest.json": _bytes(docker),
    }
    # Two layers with the same content are one blob.
    blobs = {blob.path: blob.content for blob in (*layers, configuration, manifest)}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in {**documents, **dict(sorted(blobs.items()))}.items():
            with _opened(content) as stream:
                archive.addfile(_header(path, _size(content)), stream)


def _bytes(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def write_archive(
    out: Path, name: str, layers: Sequence[Layer], config: Config, arch: str = "amd64"
) -> str:
    """Write the image *name* to *out* and return its manifest digest (``sha256:…``).

    Each layer is a finished, uncompressed tar or a mapping as :func:`layer` takes it; the first is
    the lowest. The file appears whole by rename.
    """
    check_reference(name)
    with tempfile.TemporaryDirectory(prefix=".oci-", dir=out.parent) as scratch:
        blobs = []
        for number, part in enumerate(layers):
            tar = part if isinstance(part, Path) else layer(Path(scratch) / f"{number}.tar", part)
            blobs.append(_file_blob(tar))
        configuration, manifest = _image(blobs, config, arch)
        packed = Path(scratch) / "archive"
        _pack(packed, name, blobs, configuration, manifest, arch)
        packed.rename(out)
    return f"sha256:{manifest.digest}"
