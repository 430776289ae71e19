# SPDX-License-Identifier: GPL-3.0-or-later
"""Inference services for the tests, and what is rendered from them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.flexai.xpu.plugins.module_utils._inference import facts, render

Document = dict[str, Any]
DOCUMENTS = Path(__file__).parents[1] / "fixtures" / "documents"
SCRIPTS = {"run.sh": "#!/bin/bash\n", "probe.sh": "#!/bin/bash\n", "prestop.sh": "#!/bin/bash\n"}
LEADER = "spec.servers.leader.template.spec.containers[0]"
WORKER = "spec.servers.worker.template.spec.containers[0]"
KEDA_KINDS = [facts.SCALED_OBJECT, facts.INTERCEPTOR_ROUTE, facts.SERVICE_MONITOR]


def document_004() -> Document:
    """The manifest as it stands in document 004."""
    text = (DOCUMENTS / "004-inference-service.txt").read_text()
    # The document's curly quotes, which no file of a collection may have as such.
    text = text.replace("<ldquo>", "\u201c").replace("<rdquo>", "\u201d")
    found: Document = yaml.safe_load(text)
    return found


def _container(gpus: int) -> Document:
    amounts = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": str(gpus)}
    return {"name": "engine", "resources": {"limits": amounts}}


def _role(replicas: int, gpus: int) -> Document:
    return {"replicas": replicas, "template": {"spec": {"containers": [_container(gpus)]}}}


def service(workers: int = 1, groups: int = 1, gpus: int = 2, **changes: Any) -> Document:
    """A service that renders: vLLM with tp in a pod and pp over the pods. *changes* is
    ``path=value`` with ``__`` for a dot, as ``flexai__layout``, below ``spec``."""
    document: Document = {
        "apiVersion": "system.hero.ai/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "qwen", "namespace": "serving"},
        "spec": {
            "deploymentMode": "DistributeInference",
            "replicas": groups,
            "servers": {"leader": _role(1, gpus)},
            "flexai": {
                "engine": {"name": "vllm", "version": "0.20.0"},
                "model": {"path": "/models/Qwen2-7B-Instruct"},
                "parallelism": {"tp": gpus, "pp": 1 + workers},
            },
        },
    }
    if workers:
        document["spec"]["servers"]["worker"] = _role(workers, gpus)
    for path, value in changes.items():
        put(document, "spec." + path.replace("__", "."), value)
    return document


def put(document: Document, path: str, value: Any) -> Document:
    """Set what lies at *path*, as ``spec.servers.leader.template.spec.containers[0].env``."""
    keys = [int(k) if k.isdigit() else k for k in re.split(r"[.\[\]]+", path) if k]
    at: Any = document
    for key in keys[:-1]:
        at = at.setdefault(key, {}) if isinstance(at, dict) else at[key]
    at[keys[-1]] = value
    return document


def both(document: Document, key: str, value: Any) -> Document:
    """Set a key of both engine containers."""
    for path in (LEADER, WORKER):
        put(document, f"{path}.{key}", copy.deepcopy(value))
    return document


def outcome(document: Any, known: Document | None = None, **more: Any) -> render.Outcome:
    """What is rendered, whatever it is."""
    cluster, problems = facts.parse(known)
    assert problems == []
    return render.render(document, cluster, SCRIPTS, **more)


def rendered(document: Any, known: Document | None = None, **more: Any) -> render.Rendered:
    """What is rendered from a service that is right."""
    found = outcome(document, known, **more)
    assert [str(problem) for problem in found.problems] == []
    assert found.rendered is not None
    return found.rendered


def problems(document: Any, known: Document | None = None) -> list[str]:
    """What is wrong, as its reader sees it."""
    found = outcome(document, known)
    assert (found.rendered is None) == bool(found.problems)
    return [str(problem) for problem in found.problems]


def of_kind(result: render.Rendered, kind: str) -> list[Document]:
    """The objects of a kind."""
    return [thing for thing in result.objects if thing["kind"] == kind]


def environment(thing: Document) -> dict[str, Any]:
    """The engine's variables in a StatefulSet: plain values, or where they come from."""
    (container, *_rest) = thing["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
