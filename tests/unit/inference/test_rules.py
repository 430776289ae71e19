# SPDX-License-Identifier: GPL-3.0-or-later
"""Every rule: what breaks it, which path is named, and what the reader is told to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._inference import checks, facts
from ansible_collections.flexai.xpu.plugins.module_utils._inference import service as services

from .samples import LEADER, WORKER, Document, both, outcome, problems, put, service

POD = "spec.servers.leader.template"
Change = Callable[[Document], object]


def at(path: str, value: Any) -> Change:
    return lambda document: put(document, path, value)


def in_both(key: str, value: Any) -> Change:
    return lambda document: both(document, key, value)


KEDA = {"mode": "keda", "prometheus": {"server": "http://p:9090"}}

# Case → (change, facts, path of the problem, words of it).
BROKEN: dict[str, tuple[Change, Document, str, str]] = {
    "a name with dots": (at("metadata.name", "a.b"), {}, "metadata.name", "no dots"),
    "a name that leaves no room": (
        at("metadata.name", "n" * 48),
        {},
        "metadata.name",
        "at most 47 characters",
    ),
    "a namespace": (at("metadata.namespace", "A"), {}, "metadata.namespace", "lower-case"),
    "two leaders": (
        at("spec.servers.leader.replicas", 2),
        {},
        "spec.servers.leader.replicas",
        "spec.replicas counts the groups",
    ),
    "more groups at once than there are": (
        at("spec.flexai.rollout.max_unavailable_groups", 2),
        {},
        "spec.flexai.rollout.max_unavailable_groups",
        "at most the 1 groups",
    ),
    "a queue's name": (at("spec.scheduler.queue", "A b"), {}, "spec.scheduler.queue", "Volcano"),
    "a queue that is closed": (
        at("spec.scheduler.queue", "q"),
        {"queues": {"q": "Closed"}},
        "spec.scheduler.queue",
        "this one is Closed",
    ),
    "a queue that isn't there": (
        at("spec.scheduler.queue", "q"),
        {"queues": {}},
        "spec.scheduler.queue",
        "does not exist",
    ),
    "a queue without Volcano": (
        at("spec.scheduler.queue", "q"),
        {"kinds": []},
        "spec.scheduler.queue",
        "install Volcano",
    ),
    "a label of ours": (
        at(f"{POD}.metadata.labels", {"flexai.io/group": "7"}),
        {},
        f"{POD}.metadata.labels.flexai.io/group",
        "the renderer sets these",
    ),
    "a label's value": (
        at("metadata.labels", {"a": "b c"}),
        {},
        "metadata.labels.a",
        "make it an annotation",
    ),
    "no container": (
        at(f"{POD}.spec.containers", []),
        {},
        f"{POD}.spec.containers",
        "the first is the engine's",
    ),
    "no template to speak of": (
        at(POD, {}),
        {},
        f"{POD}.spec.containers",
        "the first is the engine's",
    ),
    "a pod that ends": (
        at(f"{POD}.spec.restartPolicy", "Never"),
        {},
        f"{POD}.spec.restartPolicy",
        "Always",
    ),
    "another scheduler beside a queue": (
        lambda d: (put(d, "spec.scheduler.queue", "q"), put(d, f"{POD}.spec.schedulerName", "x")),
        {},
        f"{POD}.spec.schedulerName",
        "remove it, or the queue",
    ),
    "a host name": (at(f"{POD}.spec.hostname", "h"), {}, f"{POD}.spec.hostname", "remove it"),
    "containers of one name": (
        at(f"{POD}.spec.containers", [{"name": "a"}, {"name": "a", "image": "x"}]),
        {},
        f"{POD}.spec.containers[1].name",
        "each name once",
    ),
    "a sidecar without an image": (
        at(f"{POD}.spec.containers", [{"name": "a"}, {"name": "b"}]),
        {},
        f"{POD}.spec.containers[1].image",
        "name the image",
    ),
    "a command beside an engine": (
        at(f"{LEADER}.command", ["vllm"]),
        {},
        f"{LEADER}.command",
        "spec.flexai.engine.args",
    ),
    "an engine without a model": (
        at("spec.flexai.model", None),
        {},
        "spec.flexai.model",
        "write spec.flexai.model.path",
    ),
    "a rendezvous beside an engine": (
        at("spec.flexai.rendezvous", {"backend": "ray"}),
        {},
        "spec.flexai.rendezvous",
        "remove it",
    ),
    "a backend that the version lacks": (
        at("spec.flexai.engine", {"name": "vllm", "version": "0.8.5", "backend": "mp"}),
        {},
        "spec.flexai.engine.backend",
        "take ray",
    ),
    "a flag that the renderer writes": (
        at("spec.flexai.engine.args", ["--tensor-parallel-size=8"]),
        {},
        "spec.flexai.engine.args[0]",
        "set from tp",
    ),
    "parallelism that doesn't use the GPUs": (
        at("spec.flexai.parallelism", {"tp": 4, "pp": 2}),
        {},
        "spec.flexai.parallelism",
        "a product of 4",
    ),
    "heads that don't divide": (
        lambda d: d.update(service(gpus=3)),
        {},
        "spec.flexai.parallelism.tp",
        "28",
    ),
    "a container's name": (
        at(f"{LEADER}.name", "vLLM"),
        {},
        f"{LEADER}.name",
        "rename it",
    ),
    "weights that don't fit the card": (
        at("spec.flexai.model", {"path": "/models/DeepSeek-R1-Distill-Qwen-32B"}),
        {"gpu_memory": "8Gi"},
        "facts.gpu_memory",
        "DeepSeek-R1-Distill-Qwen-32B",
    ),
    "a driver that the image is too new for": (
        at("spec.replicas", 1),
        {"driver_version": "535.183.06", "gpu_class": "consumer"},
        "spec.flexai.engine.version",
        "535.183.06",
    ),
    "a request without a limit": (
        at(f"{LEADER}.resources", {"requests": {"nvidia.com/gpu": "2"}}),
        {},
        f"{LEADER}.resources.requests.nvidia.com/gpu",
        "under limits",
    ),
    "a request that isn't the limit": (
        at(f"{LEADER}.resources.requests", {"nvidia.com/gpu": "1"}),
        {},
        f"{LEADER}.resources.requests.nvidia.com/gpu",
        "the limit's amount, 2",
    ),
    "half a device": (
        at(f"{LEADER}.resources.limits", {"example.com/x": "500m"}),
        {},
        f"{LEADER}.resources.limits.example.com/x",
        "whole devices",
    ),
    "a request above its limit": (
        at(f"{LEADER}.resources.requests", {"cpu": "9"}),
        {},
        f"{LEADER}.resources.requests.cpu",
        "at most the limit, 8",
    ),
    "limits beside resources": (
        at(f"{LEADER}.limits", {"cpu": "1"}),
        {},
        f"{LEADER}.limits",
        "write resources.limits: it belongs one level deeper",
    ),
    "a mount that is ours": (
        at(f"{LEADER}.volumeMounts", [{"name": "a", "mountPath": "/dev/shm"}]),
        {},
        f"{LEADER}.volumeMounts[0].mountPath",
        "spec.flexai.shm_size",
    ),
    "a volume that is ours": (
        at(f"{POD}.spec.volumes", [{"name": "flexai-x"}]),
        {},
        f"{POD}.spec.volumes[0].name",
        "rename it",
    ),
    "shared memory above the limit": (
        at("spec.flexai.shm_size", "64Gi"),
        {},
        "spec.flexai.shm_size",
        "less than the memory limit 64Gi",
    ),
    "a port that the members need": (
        at("spec.flexai.api.port", 29400),
        {},
        "spec.flexai.api.port",
        "heartbeat",
    ),
    "a health path": (
        at("spec.flexai.api.health_path", "health"),
        {},
        "spec.flexai.api.health_path",
        "write /health",
    ),
    "a variable of the renderer's": (
        in_both("env", [{"name": "LWS_GROUP_SIZE", "value": "9"}]),
        {},
        f"{LEADER}.env[0].name",
        "the renderer sets this one",
    ),
    "a variable twice": (
        at(f"{LEADER}.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        {},
        f"{LEADER}.env[1].name",
        "each name once",
    ),
    "a variable that no shell takes": (
        at(f"{LEADER}.env", [{"name": "a-b", "value": "1"}]),
        {},
        f"{LEADER}.env[0].name",
        "letters, digits",
    ),
    "RoCE's settings with TCP": (
        at("spec.flexai.network", {"gid_index": 3}),
        {},
        "spec.flexai.network.gid_index",
        "profile be roce",
    ),
    "an interface": (
        at("spec.flexai.network", {"ifname": "eth 0"}),
        {},
        "spec.flexai.network.ifname",
        "=eth0",
    ),
    "a client of two kinds": (
        at("spec.flexai.network_policy.clients", [{"ipBlock": {"cidr": "10.0.0.0/8"},
                                                   "podSelector": {}}]),
        {},
        "spec.flexai.network_policy.clients[0]",
        "one kind of client",
    ),
    "scaling keys without scaling": (
        at("spec.flexai.scaling", {"min_groups": 1}),
        {},
        "spec.flexai.scaling.min_groups",
        "mode",
    ),
    "more groups always on than there are": (
        at("spec.flexai.scaling", {**KEDA, "min_groups": 3}),
        {},
        "spec.flexai.scaling.min_groups",
        "at most the 1 groups",
    ),
    "serverless and always on": (
        at("spec.flexai.scaling", {**KEDA, "min_groups": 1, "serverless": True}),
        {},
        "spec.flexai.scaling.serverless",
        "min_groups 0",
    ),
    "a wake-up by metrics that are gone": (
        at("spec.flexai.scaling", {**KEDA, "serverless": True}),
        {},
        "spec.flexai.scaling.prometheus.query",
        "go with its pods",
    ),
    "nothing that tells the load": (
        at("spec.flexai.scaling", {"mode": "keda"}),
        {},
        "spec.flexai.scaling.prometheus",
        "what tells the load",
    ),
    "several groups by HTTP alone": (
        lambda d: (
            put(d, "spec.replicas", 3),
            put(d, "spec.flexai.scaling", {"mode": "keda", "http": {"hosts": ["a"]}}),
        ),
        {},
        "spec.flexai.scaling.prometheus",
        "not for how many groups",
    ),
    "a cool-down shorter than the drain": (
        at("spec.flexai.scaling", {**KEDA, "cooldown_seconds": 5}),
        {},
        "spec.flexai.scaling.cooldown_seconds",
        "at least the 30 s",
    ),
    "KEDA that isn't there": (
        at("spec.flexai.scaling", KEDA),
        {"kinds": []},
        "spec.flexai.scaling.mode",
        "install KEDA",
    ),
    "an HPA over groups of several pods": (
        at("spec.flexai.scaling", {"mode": "hpa", "metric": "m"}),
        {},
        "spec.flexai.scaling.mode",
        "moves single pods",
    ),
    "LWS that isn't there": (
        at("spec.flexai.layout", "lws"),
        {"kinds": []},
        "spec.flexai.layout",
        "install LWS",
    ),
    "one template for two images": (
        lambda d: (put(d, "spec.flexai.layout", "single"), put(d, f"{WORKER}.image", "x")),
        {},
        f"{WORKER}.image",
        "layout be auto or split",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_with_what_to_do(case: str) -> None:
    change, known, path, words = BROKEN[case]
    document = service()
    change(document)
    found = [text for text in problems(document, known) if text.startswith(f"{path}: ")]
    assert found, problems(document, known)
    assert words in found[0]


def test_the_unbroken_service_has_nothing_to_correct() -> None:
    assert problems(service()) == []


def test_every_rule_is_broken_by_some_case() -> None:
    """A rule that no case reaches could be empty."""
    silent = set(checks.RULES)
    for change, known, *_rest in BROKEN.values():
        document = service()
        change(document)
        parsed = services.parse(document)[0]
        cluster = facts.parse(known)[0]
        silent -= {rule for rule in silent if list(rule(parsed, cluster))}
    # Fixtures of documents 003 and 004 break these (test_documents.py).
    by_documents = {checks.addresses, checks.secrets, checks.distinct_cards}
    assert silent - by_documents == set()


def test_all_at_once() -> None:
    document: Document = service(metadata=1)
    put(document, "metadata.name", "Bad")
    put(document, "spec.replcas", 3)
    put(document, f"{LEADER}.limits", {})
    put(document, "spec.flexai.shm_size", "100Gi")
    paths = [text.partition(": ")[0] for text in problems(document)]
    assert set(paths) == {
        "spec.metadata",
        "spec.replcas",
        f"{LEADER}.limits",
        "metadata.name",
        "spec.flexai.shm_size",
    }


def test_what_has_a_wrong_shape_is_not_complained_about_twice() -> None:
    document = service()
    put(document, "spec.flexai.parallelism", {"tp": "two", "pp": 2})
    (text,) = problems(document)
    assert text.startswith('spec.flexai.parallelism.tp: "two"')


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("USER_REGISTRY_PASSWORD", True),
        ("HF_TOKEN", True),
        ("VLLM_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("OPENAI_APIKEY", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("MAX_TOKENS", False),
        ("HF_TOKEN_PATH", False),
        ("KEY_PREFIX", False),
        ("NCCL_IB_GID_INDEX", False),
    ],
)
def test_which_variables_hold_secrets(name: str, secret: bool) -> None:
    assert checks.names_secret(name) is secret


def test_a_secret_by_reference_is_fine() -> None:
    reference = {"secretKeyRef": {"name": "s", "key": "k"}}
    document = both(service(), "env", [{"name": "HF_TOKEN", "valueFrom": reference}])
    assert problems(document) == []


def test_shares_are_distinct_cards_where_there_are_more_than_one_card_has() -> None:
    """Document 003's pigeonhole: 12 of 10 shares a card are on two cards."""
    document = service(workers=0, flexai__parallelism={"tp": 2})
    limits = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu.shared": "12"}
    put(document, f"{LEADER}.resources.limits", limits)
    paths = [text.partition(": ")[0] for text in problems(document, {"shared_replicas": 10})]
    assert f"{LEADER}.resources.limits.nvidia.com/gpu.shared" not in paths
    paths = [text.partition(": ")[0] for text in problems(document, {"shared_replicas": 12})]
    assert f"{LEADER}.resources.limits.nvidia.com/gpu.shared" in paths


def test_facts_are_checked_too() -> None:
    _rest, wrong = facts.parse({"kubernetes_version": "new", "kidns": []})
    assert [problem.path for problem in wrong] == ["facts.kidns", "facts.kubernetes_version"]


def test_more_than_the_worst_is_told_for_a_document_that_is_nothing() -> None:
    documents: list[Any] = [None, {}, [], "x", {"spec": {"servers": {"leader": 1}}}]
    for document in documents:
        found = outcome(document)
        assert found.rendered is None
        assert found.problems
