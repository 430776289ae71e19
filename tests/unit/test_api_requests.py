# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests that reach an API server, through the real client library."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils import _drain as drain
from ansible_collections.flexai.xpu.plugins.module_utils._cluster import connect
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import cluster_owners, node_drain

BUDGET = "The disruption budget web needs 1 healthy pods and has 1 currently"
NODE: dict[str, Any] = {"metadata": {"name": "gpu1", "labels": {}, "annotations": {}}, "spec": {}}
POD: dict[str, Any] = {
    "metadata": {
        "namespace": "team",
        "name": "web",
        "ownerReferences": [{"kind": "ReplicaSet", "controller": True}],
    },
    "spec": {"nodeName": "gpu1"},
}


class Api(BaseHTTPRequestHandler):
    """Just what these modules ask for. A pod whose budget holds it is never evicted."""

    requests: list[str]
    patches: list[dict[str, Any]]

    def _answer(self, body: Any, code: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def do_GET(self) -> None:
        self.requests.append(f"GET {self.path}")
        answers: dict[str, Any] = {
            "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
            "/apis": {"kind": "APIGroupList", "groups": []},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
            "/api/v1/nodes": {"items": [NODE]},
            "/api/v1/nodes/gpu1": NODE,
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dgpu1": {"items": [POD]},
            "/api/v1/secrets?labelSelector=owner%3Dhelm": {"items": []},
        }
        found = answers.get(self.path)
        self._answer(found if found is not None else {"items": []}, 200 if found else 404)

    def do_PATCH(self) -> None:
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        body = self._body()
        self.patches.append(body)
        for part, values in body.items():
            for key, value in values.items():
                if isinstance(value, dict):
                    NODE[part].setdefault(key, {}).update(value)
                    for name in [name for name, one in value.items() if one is None]:
                        del NODE[part][key][name]
                elif value is None:
                    NODE[part].pop(key, None)
                else:
                    NODE[part][key] = value
        self._answer(NODE)

    def do_POST(self) -> None:
        self.requests.append(f"POST {self.path} {self._body()['kind']}")
        causes = [{"reason": "DisruptionBudget", "message": BUDGET}]
        said = "Cannot evict pod as it would violate the pod's disruption budget."
        self._answer({"message": said, "details": {"causes": causes}, "code": 429}, 429)

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    Api.requests, Api.patches = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "users": [{"name": "u", "user": {}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    yield str(file)
    server.shutdown()
    server.server_close()


def test_a_drain_asks_for_evictions_and_takes_the_cordon_back_where_a_budget_holds(
    kubeconfig: str,
) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    one = drain.Drain(connect(kubeconfig), "gpu1", lambda: now[0], sleep)
    params = {
        "state": "drained",
        "reason": "why",
        "pause_labels": [],
        "max_unavailable": 1,
        "turn_limit_s": 10,
        "limit_s": 3,
        "delete_orphans": False,
    }
    with pytest.raises(XpuError) as error:
        node_drain.converge(one, params, False)
    assert f"within 3 s: team/web ({BUDGET}). It is uncordoned again" in error.value.msg
    assert "POST /api/v1/namespaces/team/pods/web/eviction Eviction" in Api.requests
    assert Api.patches[0]["spec"] == {"unschedulable": True}
    assert Api.patches[-1]["spec"] == {"unschedulable": None}
    assert NODE["spec"] == {} and NODE["metadata"]["annotations"] == {}


def test_the_owners_are_looked_for_by_a_few_requests(kubeconfig: str) -> None:
    cluster = connect(kubeconfig)
    Api.requests.clear()
    seen = cluster_owners.observe(cluster)
    assert [node["metadata"]["name"] for node in seen.nodes] == ["gpu1"]
    assert len(Api.requests) == 6
    assert "GET /api/v1/secrets?labelSelector=owner%3Dhelm" in Api.requests
