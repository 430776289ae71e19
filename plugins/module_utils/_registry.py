# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Pushing OCI archives to a registry by the distribution API.

``send`` is all the input and output there is. Credentials leave this module in one header only,
never in a URL, a command line or a message.
"""

from __future__ import annotations

import base64
import json
import re
import tarfile
import typing as t
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

from ._errors import XpuError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
_PATH = re.compile(r"^[a-z0-9]+([._/-]+[a-z0-9]+)*$")
_CHALLENGE = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)


class Answer(t.NamedTuple):
    """What the registry said; header names in lower case."""

    status: int
    headers: t.Mapping[str, str]
    body: bytes = b""


Send = t.Callable[[str, str, t.Mapping[str, str], t.Any], Answer]


@dataclass(frozen=True)
class Registry:
    """Where images go: ``https://host:port`` and the path that goes before their names."""

    base: str
    path: str

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc

    @property
    def prefix(self) -> str:
        """What goes before an image's name in a pod: the chart's ``basic.swr_addr``."""
        return f"{self.host}/{self.path}" if self.path else self.host

    def repository(self, reference: str) -> tuple[str, str]:
        """(repository here, tag) of an image that is named ``…/name:tag``."""
        name, tag = reference.rpartition("/")[2].split(":", 1)
        return (f"{self.path}/{name}" if self.path else name), tag


def parse_registry(url: str) -> Registry:
    """``host[:port][/path]``, with ``http://`` where it speaks no TLS."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    path = parts.path.strip("/")
    remedy = (
        "write host:port/path, as in registry.site:5000/flexai; http:// goes before it in plain"
    )
    if "@" in parts.netloc:
        raise XpuError(
            "The registry's URL holds a user or password, which every log would show.",
            "take it out and set images_registry_username and images_registry_password.",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise XpuError(f"{url!r} is no registry.", f"{remedy}.")
    if path and not _PATH.match(path):
        raise XpuError(f"{url!r} is no registry: {path!r} is no repository path.", f"{remedy}.")
    return Registry(urlunsplit((parts.scheme, parts.netloc, "", "", "")), path)


def refuse_plain_credentials(registry: Registry, username: str) -> None:
    """A password over plain HTTP is everybody's on the way."""
    parts = urlsplit(registry.base)
    if username and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise XpuError(
            f"Registry {registry.base} speaks no TLS; its password would be sent in plain.",
            "use https:// (images_registry_ca_file names the CA of its certificate).",
        )


# -- the archive -----------------------------------------------------------------------------


class Blob(t.NamedTuple):
    digest: str
    size: int

    @property
    def member(self) -> str:
        return "blobs/" + self.digest.replace(":", "/")


class Image:
    """The image of an open OCI archive."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        index = json.loads(self._read("index.json"))
        self.digest: str = index["manifests"][0]["digest"]
        self.manifest = self._read(Blob(self.digest, 0).member)
        described = json.loads(self.manifest)
        parts = [described["config"], *described["layers"]]
        self.blobs = [Blob(part["digest"], int(part["size"])) for part in parts]

    def _read(self, member: str) -> bytes:
        return self.open(member).read()

    def open(self, member: str) -> t.IO[bytes]:
        stream = self._archive.extractfile(member)
        if stream is None:
            raise XpuError(f"{self._archive.name} has no file {member}.", "build the archive anew.")
        return stream


# -- the registry ----------------------------------------------------------------------------


def challenge(header: str) -> tuple[str, dict[str, str]]:
    """``WWW-Authenticate`` → (scheme in lower case, its parameters)."""
    scheme, rest = header.partition(" ")[::2]
    return scheme.lower(), dict(_CHALLENGE.findall(rest))


class Client:
    """One registry. Asked for credentials it gives them, once, to whom it was told to."""

    def __init__(self, send: Send, registry: Registry, username: str, password: str) -> None:
        refuse_plain_credentials(registry, username)
        self._send, self._registry = send, registry
        pair = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._basic = f"Basic {pair}" if username else ""
        self._authorization = ""

    def digest(self, repository: str, tag: str) -> str:
        """Manifest digest under a tag; empty where there is none."""
        path = f"/v2/{repository}/manifests/{tag}"
        found = self._ask("HEAD", path, {"Accept": MANIFEST}, allowed=(200, NOT_FOUND))
        return found.headers.get("docker-content-digest", "") if found.status == 200 else ""

    def push(self, image: Image, repository: str, tag: str) -> None:
        """Blobs first, then the manifest, so that a tag never names what isn't there."""
        for blob in image.blobs:
            path = f"/v2/{repository}/blobs/{blob.digest}"
            if self._ask("HEAD", path, allowed=(200, NOT_FOUND)).status == NOT_FOUND:
                self._upload(image, repository, blob)
        headers = {"Content-Type": MANIFEST, "Content-Length": str(len(image.manifest))}
        self._ask("PUT", f"/v2/{repository}/manifests/{tag}", headers, image.manifest, (201,))

    def _upload(self, image: Image, repository: str, blob: Blob) -> None:
        begun = self._ask(
            "POST", f"/v2/{repository}/blobs/uploads/", {"Content-Length": "0"}, b"", (202,)
        )
        target = urlsplit(urljoin(self._registry.base, begun.headers["location"]))
        query = urlencode([*parse_qsl(target.query), ("digest", blob.digest)])
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        url = urlunsplit(target._replace(query=query))
        self._ask("PUT", url, headers, image.open(blob.member), (201,))

    def _ask(
        self,
        verb: str,
        path: str,
        headers: t.Mapping[str, str] | None = None,
        body: t.Any = None,
        allowed: t.Collection[int] = (200,),
    ) -> Answer:
        url = urljoin(self._registry.base, path)
        answer = self._send(verb, url, self._with_credentials(url, headers), body)
        if answer.status == UNAUTHORIZED:
            self._authorization = self._answer_challenge(answer)
            if hasattr(body, "seek"):
                body.seek(0)
            answer = self._send(verb, url, self._with_credentials(url, headers), body)
        if answer.status not in allowed:
            raise self._failure(verb, url, answer)
        return answer

    def _with_credentials(self, url: str, headers: t.Mapping[str, str] | None) -> dict[str, str]:
        # An upload may go on at another host (a storage service), which has its own in the URL.
        ours = self._authorization and urlsplit(url).netloc == self._registry.host
        return {**(headers or {}), **({"Authorization": self._authorization} if ours else {})}

    def _answer_challenge(self, answer: Answer) -> str:
        scheme, parameters = challenge(answer.headers.get("www-authenticate", ""))
        if scheme == "basic" and self._basic:
            return self._basic
        if scheme == "bearer" and "realm" in parameters:
            return self._token(parameters)
        raise XpuError(
            f"Registry {self._registry.host} asks for credentials "
            f"({scheme or 'of no known kind'}), and none are set.",
            "set images_registry_username and images_registry_password.",
        )

    def _token(self, parameters: t.Mapping[str, str]) -> str:
        realm = parameters["realm"]
        if self._registry.base.startswith("https:") and not realm.startswith("https:"):
            raise XpuError(
                f"Registry {self._registry.host} sends for a token to {realm}, without TLS.",
                "correct the registry's token realm.",
            )
        asked = [(key, parameters[key]) for key in ("service", "scope") if key in parameters]
        headers = {"Authorization": self._basic} if self._basic else {}
        answer = self._send("GET", f"{realm}?{urlencode(asked, quote_via=quote)}", headers, None)
        if answer.status != 200:
            raise self._failure("GET", realm, answer)
        found = json.loads(answer.body)
        return f"Bearer {found.get('token') or found['access_token']}"

    def _failure(self, verb: str, url: str, answer: Answer) -> XpuError:
        # Without its query: an upload's may hold a signature.
        where = urlunsplit(urlsplit(url)._replace(query=""))
        said = f"{verb} {where} was answered {answer.status}: {_said(answer.body)}."
        if answer.status in (UNAUTHORIZED, FORBIDDEN):
            return XpuError(
                said,
                "check images_registry_username and images_registry_password, and that this user "
                "may push there.",
            )
        return XpuError(said, "check images_registry and the registry's own log.")


def _said(body: bytes) -> str:
    """The registry's own words."""
    try:
        errors = json.loads(body)["errors"]
        return "; ".join(str(error.get("message") or error.get("code")) for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:200].decode(errors="replace").strip() or "nothing more"
