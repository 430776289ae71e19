# SPDX-License-Identifier: GPL-3.0-or-later
"""Custom resources against the schemas of their own projects, in which no unknown key is left."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from testbed.recipes import crds
from xpubuild.cache import Cache

from .samples import of_kind, put, rendered
from .test_objects import SAMPLES

KINDS = ("ScaledObject", "PodGroup", "LeaderWorkerSet")


def closed(schema: Any) -> Any:
    """An openAPIV3Schema as JSON Schema that refuses unknown keys, as ``--strict`` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ = found.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_:
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found = {}
    for path in sorted(crds.build(Cache()).glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            spec = document["spec"]
            for version in spec["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                kind = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
                found[kind] = schema
    return found


def validate(schemas: dict[str, Any], thing: dict[str, Any]) -> None:
    jsonschema.validate(thing, schemas[f"{thing['apiVersion']}/{thing['kind']}"])


def test_their_projects_take_every_one(schemas: dict[str, Any]) -> None:
    seen = set()
    for document, known in SAMPLES.values():
        for thing in rendered(document, known).objects:
            if thing["kind"] in KINDS:
                validate(schemas, thing)
                seen.add(thing["kind"])
    assert seen == set(KINDS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.maxReplicaCount", "2"),
        ("spec.minReplicas", 1),
        ("spec.triggers[0].metadata.threshold", 32),
    ],
)
def test_the_schemas_refuse_what_the_api_server_would(
    schemas: dict[str, Any], path: str, value: Any
) -> None:
    (thing, *_rest) = of_kind(rendered(*SAMPLES["keda"]), "ScaledObject")
    broken = put(copy.deepcopy(thing), path, value)
    with pytest.raises(jsonschema.ValidationError):
        validate(schemas, broken)


def test_the_least_is_never_above_the_most() -> None:
    """KEDA's own rule over both fields (CEL in its CRD), for every service that scales."""
    for document, known in SAMPLES.values():
        for thing in of_kind(rendered(document, known), "ScaledObject"):
            spec = thing["spec"]
            assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
            assert spec.get("idleReplicaCount", 0) <= spec["minReplicaCount"]
