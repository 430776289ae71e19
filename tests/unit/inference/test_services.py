# SPDX-License-Identifier: GPL-3.0-or-later
"""The services of inventories/sandbox: the documents' own, but for what is refused in them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

from . import samples
from .samples import LEADER, WORKER, Document, document_004, outcome, rendered

SERVICES = Path(__file__).parents[3] / "inventories" / "sandbox" / "services"
SHARED = {"shared_replicas": 10}


def load(name: str, **variables: Any) -> Document:
    """The service of a file, as Ansible sees it with *variables*."""
    environment = NativeEnvironment()

    def template(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: template(one) for key, one in value.items()}
        if isinstance(value, list):
            return [template(one) for one in value]
        return environment.from_string(value).render(variables) if "{{" in str(value) else value

    text = (SERVICES / f"{name}.yml").read_text("utf-8")
    (found,) = template(yaml.safe_load(text)["inference_service_services"])
    service: Document = found
    return service


def manifest(name: str) -> Document:
    """A document's own manifest, whose ``{path}`` YAML would read as a mapping."""
    text = (samples.DOCUMENTS / f"{name}.txt").read_text("utf-8")
    found: Document = yaml.safe_load(text.replace("{path/to", "/path/to").replace("main}", "main"))
    return found


def differences(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """``{path: (in one, in the other)}``."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        parts = [(f"{path}.{key}", one.get(key), other.get(key)) for key in keys]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [(f"{path}[{at}]", *pair) for at, pair in enumerate(zip(one, other, strict=True))]
    else:
        return {} if one == other else {path.lstrip("."): (one, other)}
    return {
        where: what for part in parts for where, what in differences(*part[1:], part[0]).items()
    }


def test_document_004_is_verbatim_but_for_what_is_refused() -> None:
    found = differences(document_004(), load("document-004"))
    assert set(found) == {
        f"{LEADER}.args",
        f"{LEADER}.command",
        f"{WORKER}.env[1].value",
        f"{WORKER}.env[1].valueFrom",
        "spec.flexai",
    }
    refused = {str(problem).partition(": ")[0] for problem in outcome(document_004()).problems}
    assert refused == {f"{LEADER}.command", f"{LEADER}.args[0]", f"{WORKER}.env[1].value"}
    # The web server in the command's place knows no /health.
    assert found["spec.flexai"][1] == {"api": {"health_path": "/"}}
    rendered(load("document-004"))


def test_document_000_keeps_its_slice_its_node_and_its_flags() -> None:
    pod = manifest("000-deployment")["spec"]["template"]["spec"]
    (theirs,) = pod["containers"]
    service = load("document-000")
    ours = service["spec"]["servers"]["leader"]["template"]["spec"]
    assert ours["nodeSelector"] == pod["nodeSelector"]
    assert ours["containers"][0]["resources"] == {
        # Where the document has them beside.
        "requests": theirs["resources"]["requests"], "limits": theirs["limits"],
    }  # fmt: skip
    (stateful,) = samples.of_kind(rendered(service), "StatefulSet")
    words = leaders_command(rendered(service))
    assert stateful["spec"]["replicas"] == 1
    _model, *flags = theirs["args"]
    assert set(flags) <= set(words)
    assert words[:2] == theirs["command"]


def test_document_003_keeps_its_flags_its_slices_and_its_switches() -> None:
    (theirs,) = manifest("003-pod")["spec"]["containers"]
    service = load("document-003")
    result = rendered(service, SHARED)
    (stateful,) = samples.of_kind(result, "StatefulSet")
    (ours,) = stateful["spec"]["template"]["spec"]["containers"]
    # Kubernetes takes both forms of a number.
    amounts = {
        kind: {k: str(v) for k, v in asked.items()} for kind, asked in ours["resources"].items()
    }
    assert amounts == theirs["resources"]
    environment = samples.environment(stateful)
    for entry in theirs["env"]:
        assert environment[entry["name"]] == entry["value"]
    words = leaders_command(result)
    command = next(line for line in theirs["args"][0].split(";") if "vllm serve" in line)
    document = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == document[:3]
    pairs = list(zip(document[3::2], document[4::2], strict=True))
    assert pairs and all(words[words.index(flag) + 1] == value for flag, value in pairs)


@pytest.mark.parametrize("replicas", [None, 12, 20])
def test_document_003s_12_slices_are_taken_only_where_a_card_has_fewer(
    replicas: int | None,
) -> None:
    known = {"shared_replicas": replicas} if replicas else {}
    (problem,) = samples.problems(load("document-003"), known)
    assert problem.startswith(
        f"{LEADER}.resources.limits.nvidia.com/gpu.shared: 12; allowed: whole"
    )


def test_the_8b_model_is_refused_on_the_slice() -> None:
    (problem,) = samples.problems(
        load("document-000", serving_model="DeepSeek-R1-Distill-Llama-8B")
    )
    assert problem.startswith(f"{LEADER}.resources.limits.huawei.com/vgpu-memory-1Gi: ")
    assert "= 16.45 GiB" in problem


def test_the_pair_is_one_model_over_two_nodes() -> None:
    service = load("pair")
    (stateful,) = samples.of_kind(rendered(service), "StatefulSet")
    assert stateful["spec"]["replicas"] == 2
    words = leaders_command(rendered(service))
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[words.index("--nnodes") + 1] == "2"


def leaders_command(result: Any) -> list[str]:
    """The engine's words in leader.sh."""
    (files,) = samples.of_kind(result, "ConfigMap")
    return shlex.split(files["data"]["leader.sh"], comments=True)
