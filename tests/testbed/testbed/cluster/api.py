# SPDX-License-Identifier: GPL-3.0-or-later
"""The little of the Kubernetes API that bringing a cluster up needs, from the machine itself."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TestbedError
from .layout import API_PORT

TIMEOUT_S = 5


class Unreachable(Exception):
    """The API server did not answer; it may be starting."""


@dataclass(frozen=True)
class Api:
    """The API server on node *name*, asked as administrator; *pki* is the cluster's key store."""

    name: str
    address: str
    pki: Path

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / "admin.crt", self.pki / "admin.key")
        return context

    def request(
        self, method: str, path: str, body: object = None, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """Status and body of one request; Unreachable when there is no answer."""
        data = None if body is None else json.dumps(body).encode()
        connection = http.client.HTTPSConnection(
            self.address, API_PORT, timeout=TIMEOUT_S, context=self._context()
        )
        try:
            connection.request(method, path, data, {"Content-Type": kind} if data else {})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"https://{self.address}:{API_PORT}: {error}") from error
        finally:
            connection.close()

    def ready(self) -> str:
        """Empty once the API server says it is ready, else why not."""
        try:
            status, body = self.request("GET", "/readyz")
        except Unreachable as error:
            return str(error)
        return "" if status == 200 else body.decode(errors="replace")

    def nodes(self) -> list[dict[str, Any]]:
        """All Node objects."""
        status, body = self.request("GET", "/api/v1/nodes")
        if status != 200:
            raise TestbedError(f"listing nodes: the API server answered {status}: {body[:300]!r}")
        return list(json.loads(body)["items"])

    def exists(self, path: str) -> bool:
        """Whether there is an object at *path*."""
        return self.request("GET", path)[0] == 200

    def get(self, path: str) -> dict[str, Any]:
        """The object at *path*; empty where there is none."""
        status, body = self.request("GET", path)
        return dict(json.loads(body)) if status == 200 else {}

    def apply(self, path: str, thing: dict[str, Any]) -> None:
        """Server-side apply: what others have set on the object stays."""
        query = "?fieldManager=testbed&force=true"
        kind = "application/apply-patch+yaml"
        status, body = self.request("PATCH", path + query, thing, kind)
        if status not in (200, 201):
            raise TestbedError(f"applying {path}: answered {status}: {body[:300]!r}")

    def label_node(self, name: str, label: str, value: str) -> None:
        """Set one label of one node."""
        kind = "application/merge-patch+json"
        patch = {"metadata": {"labels": {label: value}}}
        status, body = self.request("PATCH", f"/api/v1/nodes/{name}", patch, kind)
        if status != 200:
            raise TestbedError(f"labelling node {name}: answered {status}: {body[:300]!r}")
