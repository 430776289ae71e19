# SPDX-License-Identifier: GPL-3.0-or-later
"""A document's shape: unknown keys, wrong types and missing keys, all at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._inference import pod_types, shape
from ansible_collections.flexai.xpu.plugins.module_utils._inference.pod_types import POD_TYPES

ROOT = Path(__file__).resolve().parents[3]

TYPES = {
    "Thing": {
        "name!": "string",
        "count": "1..9",
        "any": "0..",
        "on": "switch",
        "kind": "a|b",
        "only": "=x",
        "size": "quantity",
        "list": "[Inner]",
        "map": "{string}",
        "env": "{string}",
        "inner": "Inner",
        "port": "int-or-string",
        "open": "object",
    },
    "Inner": {"value": "integer", "limits": "{quantity}", "must!": "boolean"},
}


def check(**keys: Any) -> tuple[Any, list[str]]:
    clean, problems = shape.check({"name": "n", **keys}, TYPES, "Thing")
    clean.pop("name", None)
    return clean, [str(problem) for problem in problems]


RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a templated number is one": ({"count": "3"}, {"count": 3}),
    "a templated switch is one": ({"on": "True"}, {"on": True}),
    "quantities as text and number": ({"size": 2}, {"size": 2}),
    "a port by name": ({"port": "http"}, {"port": "http"}),
    "null is nothing": ({"inner": None, "count": None}, {}),
    "anything under an open key": ({"open": {"a": [1]}}, {"open": {"a": [1]}}),
    "the very word": ({"only": "x"}, {"only": "x"}),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_read(case: str) -> None:
    given, wanted = RIGHT[case]
    assert check(**given) == (wanted, [])


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "out of bounds": (
        {"count": 10},
        {},
        ["count: 10; allowed: a whole number from 1 to 9; do: correct the value"],
    ),
    "true is no number": (
        {"any": True},
        {},
        ["any: true; allowed: a whole number from 0 on; do: correct the value"],
    ),
    "none of the words": (
        {"kind": "c"},
        {},
        ['kind: "c"; allowed: a, b; do: correct the value'],
    ),
    "text where a list stands": (
        {"list": "x"},
        {},
        [
            'list: "x"; allowed: a list; do: write each item on a line of its own after a dash',
        ],
    ),
    "a wrong item leaves the others their places": (
        {"list": [7, {"must": True, "value": "1"}, {"must": False}]},
        {"list": [{}, {"must": True}, {"must": False}]},
        [
            "list[0]: 7; allowed: keys with values; do: write it as keys with values",
            'list[1].value: "1"; allowed: a whole number, without quotes; do: correct the value',
        ],
    ),
    "a missing key": (
        {"inner": {"value": 1}},
        {"inner": {"value": 1}},
        ["inner.must: is missing; allowed: needed in inner; do: write it"],
    ),
    "an unknown key and its nearest": (
        {"cuont": 1},
        {},
        [
            "cuont: (not shown); allowed: a known key (any, count, env, inner, kind, list, map, "
            "name, on, only, open, port …); do: write count"
        ],
    ),
    "a key that belongs one level deeper": (
        {"limits": {"cpu": 1}},
        {},
        [
            "limits: (not shown); allowed: a known key (any, count, env, inner, kind, list, map, "
            "name, on, only, open, port …); do: write inner.limits: it belongs one level deeper"
        ],
    ),
    "a value that may be a secret": (
        {"env": {"PASSWORD": 123456}},
        {"env": {}},
        [
            "env.PASSWORD: (not shown); allowed: text (put numbers and yes/no in quotes); do: "
            "correct the value"
        ],
    ),
    "a wrong quantity": (
        {"size": "8 GB"},
        {},
        [
            'size: "8 GB"; allowed: a quantity of Kubernetes, as 2, 500m or 16Gi; do: correct the '
            "value"
        ],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_and_left_out(case: str) -> None:
    given, wanted, texts = WRONG[case]
    assert check(**given) == (wanted, texts)


def test_all_at_once() -> None:
    _rest, texts = shape.check({"count": 0, "x": 1, "list": [{}]}, TYPES, "Thing", "t")
    assert [text.path for text in texts] == ["t.count", "t.x", "t.list[0].must", "t.name"]


@pytest.mark.parametrize("document", [None, [], "text", 7, True])
def test_no_document_at_all(document: Any) -> None:
    clean, problems = shape.check(document, TYPES, "Thing")
    assert clean == {}
    assert len(problems) == 1


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pod_types", ROOT / "tests/sanity/pod_types.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pods_types_are_kubernetes_own() -> None:
    """Mend with: python tests/sanity/pod_types.py > …/_inference/pod_types.py"""
    assert Path(pod_types.__file__).read_text() == generator().text()


def test_every_type_that_is_named_is_there() -> None:
    plain = {"string", "boolean", "integer", "number", "int-or-string", "quantity", "object"}
    named = {kind.strip("[]{}") for keys in POD_TYPES.values() for kind in keys.values()}
    assert named <= plain | set(POD_TYPES)
