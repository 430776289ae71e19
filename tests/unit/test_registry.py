# SPDX-License-Identifier: GPL-3.0-or-later
"""Images are pushed to a registry over real HTTP, and nobody but it sees the password."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._artefacts import Artefact
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._registry import (
    Client,
    challenge,
    parse_registry,
    refuse_plain_credentials,
)
from ansible_collections.flexai.xpu.plugins.modules import registry_images
from xpubuild import oci
from xpubuild.cache import digest_file

REPOSITORY = Path(__file__).parents[2]
MODULE = "ansible_collections.flexai.xpu.plugins.modules.registry_images"
USER, PASSWORD = "pusher", "correct-horse-battery"
TOKEN = "a-token-for-this-scope"


class Handler(http.server.BaseHTTPRequestHandler):
    """The distribution API as a registry has it; digests of what arrives are checked."""

    server: Registry

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, said: str) -> None:
        self.answer(status, json.dumps({"errors": [{"message": said}]}).encode())

    def admitted(self) -> bool:
        """Whether the request may go on; it is answered where not."""
        given = self.headers.get("Authorization", "")
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.path.startswith("/token"):
            if given == basic:
                self.server.scopes.append(self.path)
                self.answer(200, json.dumps({"token": TOKEN}).encode())
            else:
                self.refuse(401, "wrong user or password")
            return False
        expected = {"basic": basic, "bearer": f"Bearer {TOKEN}", "": given}[self.server.auth]
        if given == expected:
            return True
        url = f"http://127.0.0.1:{self.server.server_port}"
        asked = {
            "basic": 'Basic realm="registry"',
            "bearer": f'Bearer realm="{url}/token",service="registry",scope="repository:x:push"',
        }[self.server.auth]
        body = json.dumps({"errors": [{"message": "authentication required"}]}).encode()
        self.answer(401, body, WWW_Authenticate=asked)
        return False

    def do_HEAD(self) -> None:
        if not self.admitted():
            return
        kind, name = self.path.split("/")[-2:]
        if kind == "blobs":
            self.answer(200 if name in self.server.blobs else 404)
            return
        digest = self.server.tags.get(self.path)
        if digest:
            self.answer(200, Docker_Content_Digest=digest)
        else:
            self.answer(404)

    do_GET = do_HEAD

    def do_POST(self) -> None:
        if self.admitted():
            self.answer(202, Location=f"{self.path}session?state=abc")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.admitted():
            return
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if "/manifests/" in self.path:
            described = json.loads(body)
            parts = [described["config"], *described["layers"]]
            if not all(part["digest"] in self.server.blobs for part in parts):
                self.refuse(400, "manifest names a blob that is not here")
                return
            self.server.tags[self.path] = digest
            self.answer(201, Docker_Content_Digest=digest)
            return
        if self.server.full or f"digest={digest}".replace(":", "%3A") not in self.path:
            self.refuse(507 if self.server.full else 400, "no space left")
            return
        self.server.blobs.add(digest)
        self.answer(201)

    def log_message(self, *_: object) -> None:
        self.server.lines.append(self.path)


class Registry(http.server.ThreadingHTTPServer):
    def __init__(self, auth: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.auth, self.full = auth, False
        self.blobs: set[str] = set()
        self.tags: dict[str, str] = {}
        self.lines: list[str] = []
        self.scopes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/flexai"


@pytest.fixture(params=["", "basic", "bearer"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(request.param) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> list[dict[str, str]]:
    """Two images that share a layer, with the entries of a manifest beside them."""
    entries = []
    for name in ("gpu-device-plugin", "cuda-client-update"):
        file = tmp_path / f"{name}.tar"
        reference = f"docker.io/library/{name}:v1.0"
        digest = oci.write_archive(
            file, reference, [{"/base": b"shared"}, {f"/{name}": b"x" * 4096}], oci.Config()
        )
        entries.append(
            {
                "name": name,
                "version": "v1.0",
                "arch": "x86_64",
                "kind": "image",
                "file": file.name,
                "source": file.name,
                "sha256": digest_file(file),
                "image": reference,
                "image_digest": digest,
            }
        )
    return entries


def push(
    registry: str,
    directory: Path,
    images: list[dict[str, str]],
    username: str = "",
    password: str = "",
    check: bool = False,
) -> dict[str, Any]:
    where = parse_registry(registry)
    client = Client(registry_images.sender(None), where, username, password)
    entries = [Artefact(**entry) for entry in images]
    return registry_images.converge(client, where, str(directory), entries, check)


def module(
    registry: str, directory: Path, images: list[dict[str, str]], **more: Any
) -> tuple[dict[str, Any], str]:
    """The module as Ansible runs it: its answer, and everything that it printed."""
    arguments = {"registry": registry, "images": images, "directory": str(directory), **more}
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "build/collections")}
    done = subprocess.run(
        [sys.executable, "-m", MODULE],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, done.stdout + done.stderr


def known(registry: Registry) -> dict[str, Any]:
    return {"username": USER, "password": PASSWORD} if registry.auth else {}


def test_missing_images_are_pushed_once(
    registry: Registry, images: list[dict[str, str]], tmp_path: Path
) -> None:
    first, printed = module(registry.url, tmp_path, images, **known(registry))
    assert first["changed"], first
    assert registry.tags == {
        f"/v2/flexai/{entry['name']}/manifests/v1.0": entry["image_digest"] for entry in images
    }
    assert first["prefix"] == f"127.0.0.1:{registry.server_port}/flexai"
    second = push(registry.url, tmp_path, images, **known(registry))
    assert (second["changed"], second["missing"]) == (False, [])
    assert PASSWORD not in printed + " ".join(registry.lines)


def test_check_mode_predicts_and_pushes_nothing(
    registry: Registry, images: list[dict[str, str]], tmp_path: Path
) -> None:
    predicted = push(registry.url, tmp_path, images, check=True, **known(registry))
    assert predicted["changed"]
    assert len(predicted["missing"]) == 2
    assert (registry.tags, registry.blobs) == ({}, set())


def test_an_image_built_anew_under_its_tag_is_pushed_again(
    registry: Registry, images: list[dict[str, str]], tmp_path: Path
) -> None:
    push(registry.url, tmp_path, images, **known(registry))
    tag = f"/v2/flexai/{images[0]['name']}/manifests/v1.0"
    registry.tags[tag] = f"sha256:{'0' * 64}"
    again = push(registry.url, tmp_path, images, **known(registry))
    assert again["missing"] == [f"127.0.0.1:{registry.server_port}/flexai/{images[0]['name']}:v1.0"]
    assert registry.tags[tag] == images[0]["image_digest"]


@pytest.mark.parametrize("registry", ["basic", "bearer"], indirect=True)
def test_a_wrong_password_is_said_and_not_shown(
    registry: Registry, images: list[dict[str, str]], tmp_path: Path
) -> None:
    wrong = "hunter2-and-more"
    answer, printed = module(registry.url, tmp_path, images, username=USER, password=wrong)
    assert answer["failed"]
    assert "was answered 401: " in answer["msg"]
    assert "check images_registry_username and images_registry_password" in answer["msg"]
    encoded = base64.b64encode(f"{USER}:{wrong}".encode()).decode()
    assert wrong not in printed
    assert encoded not in printed
    assert registry.tags == {}


@pytest.mark.parametrize("registry", ["basic"], indirect=True)
def test_a_registry_that_asks_is_named_when_nobody_is_set(
    registry: Registry, images: list[dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(XpuError, match=r"asks for credentials \(basic\), and none are set") as said:
        push(registry.url, tmp_path, images)
    assert "images_registry_username" in said.value.remedy


@pytest.mark.parametrize("registry", [""], indirect=True)
def test_a_full_registry_keeps_its_tags_whole(
    registry: Registry, images: list[dict[str, str]], tmp_path: Path
) -> None:
    registry.full = True
    with pytest.raises(XpuError, match="was answered 507: no space left") as said:
        push(registry.url, tmp_path, images)
    assert "state=abc" not in str(said.value)
    assert registry.tags == {}
    registry.full = False
    assert push(registry.url, tmp_path, images)["changed"]


def test_a_registry_that_does_not_answer_is_one_sentence(
    images: list[dict[str, str]], tmp_path: Path
) -> None:
    url = "http://127.0.0.1:9"
    asked = f"HEAD {url}/v2/flexai/gpu-device-plugin/manifests/v1.0 failed: "
    with pytest.raises(XpuError, match=re.escape(asked)):
        push(f"{url}/flexai", tmp_path, images)


@pytest.mark.parametrize("registry", [""], indirect=True)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_digest": f"sha256:{'1' * 64}"}, "the manifest says sha256:1111"),
        ({"source": "gone.tar"}, "gone.tar of docker.io/library/gpu-device-plugin:v1.0 does not"),
        ({"source": "https://site/x.tar"}, "only a file can be pushed"),
    ],
)
def test_what_is_not_the_promised_image_is_not_pushed(
    registry: Registry,
    images: list[dict[str, str]],
    tmp_path: Path,
    change: dict[str, str],
    said: str,
) -> None:
    with pytest.raises(XpuError, match=re.escape(said)):
        push(registry.url, tmp_path, [{**images[0], **change}])
    assert registry.tags == {}


@pytest.mark.parametrize(
    ("url", "base", "prefix"),
    [
        ("registry.site", "https://registry.site", "registry.site"),
        ("registry.site:5000/a/b", "https://registry.site:5000", "registry.site:5000/a/b"),
        ("https://registry.site/a/", "https://registry.site", "registry.site/a"),
        ("http://10.0.0.1:5000/a", "http://10.0.0.1:5000", "10.0.0.1:5000/a"),
    ],
)
def test_registries(url: str, base: str, prefix: str) -> None:
    registry = parse_registry(url)
    assert (registry.base, registry.prefix) == (base, prefix)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:secret@registry.site", "holds a user or password"),
        ("ftp://registry.site", "is no registry"),
        ("registry.site/Flexai", "'Flexai' is no repository path"),
        ("https://", "is no registry"),
        ("registry.site/a?b=c", "is no registry"),
    ],
)
def test_what_is_no_registry_is_refused(url: str, said: str) -> None:
    with pytest.raises(XpuError, match=re.escape(said)) as raised:
        parse_registry(url)
    assert "secret" not in str(raised.value)


def test_a_password_is_not_sent_in_plain() -> None:
    with pytest.raises(XpuError, match="its password would be sent in plain"):
        refuse_plain_credentials(parse_registry("http://registry.site"), USER)
    refuse_plain_credentials(parse_registry("http://registry.site"), "")
    refuse_plain_credentials(parse_registry("registry.site"), USER)


def test_challenges() -> None:
    text = 'Bearer realm="https://auth.site/token",service="r",scope="repository:a:pull,push"'
    assert challenge(text) == (
        "bearer",
        {"realm": "https://auth.site/token", "service": "r", "scope": "repository:a:pull,push"},
    )
    assert challenge('Basic realm="x"') == ("basic", {"realm": "x"})
    assert challenge("") == ("", {})
