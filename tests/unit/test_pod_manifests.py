# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents' own manifests: each mistake is found and named; mended ones have none."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.manifest_problems import manifest_problems
from hypothesis import given, settings
from hypothesis import strategies as st

# Verbatim from documents 000 and 003, which no linter shall mend.
DOCUMENTS = Path(__file__).parent / "fixtures" / "documents"
DEPLOYMENT, SERVICE, CONFIGMAP, POD = (
    (DOCUMENTS / f"{name}.txt").read_text("utf-8")
    for name in ("000-deployment", "000-service", "003-configmap", "003-pod")
)
CALLS_000 = [
    "http://<service-ip>:8000/openapi.json",
    "http://<service-ip>:8000/v1/chat/completions",
]
WORKLOAD = Path(__file__).parents[1] / "e2e/manifests/slice-demo.yaml"


# Kind, name and path, behind which a resource's name may stand.
PLACE = re.compile(r"^\w+ [\w-]+: \S+(?:: [a-z]+\.com/\S+)?(?=: )")


def places(problems: list[str]) -> list[str]:
    """Where the problems are, without what is said of them."""
    return [match[0] for problem in problems if (match := PLACE.match(problem))]


def the_one(problems: list[str], place: str) -> str:
    (found,) = (problem for problem in problems if problem.startswith(f"{place}: "))
    return found


C000 = "Deployment deepseek-r1: spec.template.spec.containers[0]"
P000 = "Deployment deepseek-r1: spec.template.spec"


def test_each_mistake_of_document_000_is_found_and_nothing_else() -> None:
    found = manifest_problems(f"{DEPLOYMENT}\n---\n{SERVICE}", calls=CALLS_000)
    assert places(found) == [
        f"{P000}.volumes[0].hostPath.path",
        f"{C000}.volumeMounts[0].mountPath",
        f"{C000}.args[0]",
        f"{C000}.limits",
        f"{C000}.resources.limits.huawei.com/vgpu-number",
        f"{C000}.resources.limits.huawei.com/vgpu-cores",
        f"{C000}.resources.limits.huawei.com/vgpu-memory-1Gi",
        f"{P000}.schedulerName",
        f"{P000}.runtimeClassName",
        f"{C000}.resources: huawei.com/vgpu-memory-1Gi",
        f"{C000}.volumeMounts",
        f"{C000}.livenessProbe.initialDelaySeconds",
        f"{C000}.readinessProbe.initialDelaySeconds",
        f"{C000}.image",
        "Service deepseek-r1: spec.ports",
        "Service deepseek-r1: spec.ports",
    ]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{P000}.volumes[0].hostPath.path", "YAML reads unquoted braces as a mapping"),
        (f"{C000}.args[0]", "the braces are a placeholder of the document's"),
        (f"{C000}.limits", "do: indent limits once more, so that it stands below resources"),
        (
            f"{C000}.resources.limits.huawei.com/vgpu-cores",
            "is missing; allowed: 20, as it is requested",
        ),
        (f"{P000}.schedulerName", "do: write schedulerName: volcano"),
        (f"{P000}.runtimeClassName", "do: write runtimeClassName: flexai-xpu"),
        (f"{C000}.volumeMounts", "mount an emptyDir {medium: Memory, sizeLimit: 2Gi}"),
        (f"{C000}.livenessProbe.initialDelaySeconds", "add a startupProbe"),
        (f"{C000}.image", "such as vllm/vllm-openai:v0.8.5"),
    ],
)
def test_a_problem_says_what_may_stand_there_and_what_to_do(place: str, said: str) -> None:
    assert said in the_one(manifest_problems(DEPLOYMENT), place)


def test_the_8b_model_is_refused_with_the_memory_it_needs() -> None:
    place = f"{C000}.resources: huawei.com/vgpu-memory-1Gi"
    found = the_one(manifest_problems(DEPLOYMENT), place)
    assert '"3.00 GiB"; allowed: at least what DeepSeek-R1-Distill-Llama-8B needs' in found
    assert "weights 14.96 GiB" in found and "= 31.95 GiB on each GPU" in found
    assert "give each GPU's share 32 GiB (from 16 GiB on with a shorter context)" in found


def test_the_documents_calls_miss_its_service() -> None:
    first = the_one(
        manifest_problems(SERVICE, calls=CALLS_000[:1]), "Service deepseek-r1: spec.ports"
    )
    assert first == (
        'Service deepseek-r1: spec.ports: "port 80"; allowed: 8000, which '
        "http://<service-ip>:8000/openapi.json calls; do: write port: 8000, or call port 80"
    )
    assert manifest_problems(SERVICE, calls=["http://<service-ip>:80/openapi.json"]) == []


def test_each_mistake_of_document_003_is_found_and_nothing_else() -> None:
    found = manifest_problems(f"{CONFIGMAP}\n---\n{POD}")
    container = "Pod vllm-openai: spec.containers[0]"
    assert places(found) == [
        "ConfigMap nvidia-device-plugin-configs: data.default",
        "Pod vllm-openai: spec.volumes[1].emptyDir",
        f"{container}.args[0]",
        f"{container}.resources: nvidia.com/gpu.shared",
        "Pod vllm-openai: kind",
    ]
    assert "holds the path config.map of the chart's values" in found[0]
    assert "write {medium: Memory, sizeLimit: 2Gi}" in found[1]
    assert "ln -sf … libcuda, libcudadebugger, libnvidia-nvvm, libnvidia-ptxjitcompiler" in found[2]
    assert "container toolkit be 1.17.4 or newer" in found[2]
    assert "write nvidia.com/gpu: 2 on a node with whole cards" in found[3]


def mended() -> Any:
    """Document 000's Deployment as its remedies have it."""
    thing = yaml.safe_load(DEPLOYMENT)
    pod = thing["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    path = "/data/models/Qwen2.5-0.5B-Instruct"
    pod.update(schedulerName="volcano", runtimeClassName="flexai-xpu")
    pod["volumes"][0]["hostPath"]["path"] = path
    pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}})
    container["volumeMounts"][0]["mountPath"] = path
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    container["args"][0] = path
    container["image"] = "vllm/vllm-openai:v0.8.5"
    container["resources"]["limits"] = container.pop("limits")
    for probe in ("livenessProbe", "readinessProbe"):
        del container[probe]["initialDelaySeconds"]
    return thing


MENDED = mended()


def test_its_remedies_mend_it() -> None:
    assert manifest_problems([MENDED, yaml.safe_load(SERVICE)]) == []


def test_the_demos_own_manifest_has_no_mistake() -> None:
    assert manifest_problems(WORKLOAD.read_text("utf-8")) == []


def test_a_limit_that_differs_from_its_request_is_found() -> None:
    thing = mended()
    resources = thing["spec"]["template"]["spec"]["containers"][0]["resources"]
    resources["limits"]["huawei.com/vgpu-cores"] = 30
    (found,) = manifest_problems([thing])
    assert "limits.huawei.com/vgpu-cores: 30; allowed: 20, as it is requested" in found


def test_a_shorter_context_is_proposed_where_it_would_do() -> None:
    thing = mended()
    container = thing["spec"]["template"]["spec"]["containers"][0]
    container["args"][0] = "/data/models/Qwen3-0.6B"
    (found,) = manifest_problems([thing])
    assert "do: shorten max_model_len, or give each GPU's share" in found
    container["args"] += ["--max-model-len", "4096"]
    assert manifest_problems([thing]) == []


def test_what_is_no_yaml_is_said_so() -> None:
    with pytest.raises(AnsibleFilterError, match="this is no YAML"):
        manifest_problems("a: [")


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """The mended manifest with something else at one place of it."""
    thing = copy.deepcopy(MENDED)
    holder: Any = thing
    while True:
        key = draw(
            st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        )
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.booleans()):
            break
        holder = inner
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    holder[key] = draw(
        st.recursive(
            scalars, lambda s: st.lists(s, max_size=2) | st.dictionaries(st.text(max_size=4), s)
        )
    )
    return thing


@given(broken())
@settings(max_examples=60, deadline=None)
def test_whatever_stands_there_ends_in_sentences(thing: Any) -> None:
    assert all("; do: " in problem for problem in manifest_problems([thing]))
