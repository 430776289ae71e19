# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics over HTTPS, for those alone who have the token, on a real cluster, by role monitoring."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from testbed.cluster import pki
from testbed.hosts import load

from e2e.conftest import Demo
from e2e.platform import Platform
from e2e.test_exporter import exporters

pytestmark = pytest.mark.soak

NAME = "xpu-exporter.xpu.svc"
TLS, AUTH = "exporter-e2e-tls", "exporter-e2e-token"
# Asks as Prometheus would, from a node: address, path and, on stdin, authority and headers.
SCRAPE = """
import http.client, json, socket, ssl, sys
address, path = sys.argv[1:]
told = json.load(sys.stdin)
context = ssl.create_default_context(cadata=told["authority"])
plain = socket.create_connection((address, 8082), 30)
connection = http.client.HTTPConnection(address)
connection.sock = context.wrap_socket(plain, server_hostname=told["name"]) if told["tls"] else plain
connection.request("GET", path, headers=told["headers"])
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""


@dataclass(frozen=True)
class Secured:
    """A site whose exporters have certificate and token; ``pods``: node → (name, address)."""

    platform: Platform
    authority: str
    token: str
    pods: dict[str, tuple[str, str]]

    def ask(
        self, node: str, path: str = "/metrics", token: str | None = None, tls: bool = True
    ) -> tuple[int, str]:
        """Status and body of one request to the node's exporter."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        told = {"authority": self.authority, "name": NAME, "headers": headers, "tls": tls}
        host = load(self.platform.name).host(node)
        command = ["python3", "-c", SCRAPE, self.pods[node][1], path]
        status, body = json.loads(host.exec(command, input=json.dumps(told)).stdout)
        return int(status), str(body)


def _secret(name: str, **files: bytes) -> dict[str, Any]:
    data = {key.replace("_", "."): base64.b64encode(text).decode() for key, text in files.items()}
    metadata = {"name": name, "namespace": "xpu"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def _addresses(platform: Platform) -> dict[str, tuple[str, str]]:
    found = {}
    for node, pod in exporters(platform).items():
        path = "jsonpath={.status.podIP}"
        got = platform.kubectl("-n", "xpu", "get", "pod", pod, "-o", path)
        found[node] = (pod, got.output.strip())
    return found


@contextmanager
def securing(platform: Platform, variables: dict[str, Any]) -> Iterator[Secured]:
    """Have it so for as long as it is needed; *variables* are the site's own."""
    now = datetime.now(UTC)
    authority = pki.make_authority("exporter e2e", now)
    pair = pki.issue(authority, pki.Identity("exporter", NAME, addresses=[NAME]), now)
    token = secrets.token_hex(16)
    items = [
        _secret(TLS, tls_crt=pair.certificate, tls_key=pair.key, ca_crt=authority.certificate),
        _secret(AUTH, token=token.encode()),
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
    ours = {"monitoring_https_secret": TLS, "monitoring_token_secret": AUTH}

    def cluster(more: dict[str, Any]) -> None:
        platform.playbook("site", "--tags", "cluster", "--extra-vars", json.dumps(more))

    try:
        cluster({**variables, **ours})
        yield Secured(platform, authority.certificate.decode(), token, _addresses(platform))
    finally:
        cluster(variables)
        platform.kubectl("-n", "xpu", "delete", "secret", TLS, AUTH)


@pytest.fixture(scope="module")
def secured(demo: Demo) -> Iterator[Secured]:
    with securing(demo.platform, {}) as made:
        yield made


def test_a_scrape_with_the_token_gets_the_metrics_of_every_node(secured: Secured) -> None:
    assert secured.pods
    for node in secured.pods:
        status, body = secured.ask(node, token=secured.token)
        assert status == 200
        assert "\nxpu_exporter_up 1\n" in body


@pytest.mark.parametrize("token", [None, "", "0" * 32], ids=["none", "empty", "wrong"])
def test_a_scrape_without_the_token_gets_nothing(secured: Secured, token: str | None) -> None:
    for node in secured.pods:
        status, body = secured.ask(node, token=token)
        assert status in (401, 403)
        assert "xpu_" not in body


def test_plain_http_gets_nothing(secured: Secured) -> None:
    for node in secured.pods:
        status, body = secured.ask(node, token=secured.token, tls=False)
        assert status == 400
        assert "xpu_" not in body


def test_the_kubelets_probe_needs_no_token(secured: Secured) -> None:
    for node in secured.pods:
        assert secured.ask(node, path="/healthz")[0] == 200


def test_the_token_stands_in_its_secret_alone(secured: Secured) -> None:
    shown = secured.platform.kubectl("-n", "xpu", "get", "daemonset,pod,configmap", "-o", "yaml")
    assert AUTH in shown.output
    assert secured.token not in shown.output
    for pod, _address in secured.pods.values():
        assert secured.token not in secured.platform.kubectl("-n", "xpu", "logs", pod).output
