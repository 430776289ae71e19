# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds of every service (reference §8.5): random ones that are right, and broken ones."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
from typing import Any

import kubernetes_validate
import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._inference import (
    facts,
    quantity,
    render,
    service,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import samples
from .samples import LEADER, SCRIPTS, WORKER, Document, of_kind, put
from .test_objects import NATIVE, NEWEST, SAMPLES

FUZZED = 200
NAME = r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?"
relaxed = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def services(draw: st.DrawFn) -> tuple[Document, Document]:
    """A service that is right, and a cluster that it suits."""
    workers, groups = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    document = samples.service(workers, groups, gpus=draw(st.sampled_from([1, 2, 4])))
    document["metadata"]["name"] = draw(st.from_regex(NAME, fullmatch=True))
    if workers and draw(st.booleans()):
        put(document, f"{WORKER}.image", "other:1")
    if workers and draw(st.booleans()):
        put(document, f"{LEADER}.env", [{"name": "A", "value": draw(st.text(max_size=20))}])
    if draw(st.booleans()):
        put(document, "spec.scheduler.queue", "q")
    least = draw(st.integers(0, groups))
    trigger = {"server": "http://p:9090", "query": "sum(load)"}
    mode = draw(st.sampled_from(["none", "keda"]))
    if mode == "keda":
        scaling = {"mode": mode, "min_groups": least, "prometheus": trigger}
        put(document, "spec.flexai.scaling", scaling)
    if workers:
        put(document, "spec.flexai.layout", draw(st.sampled_from(["auto", "split", "lws"])))
    put(document, "spec.flexai.network.profile", draw(st.sampled_from(["tcp", "roce"])))
    known = {
        "kubernetes_version": draw(st.sampled_from(["1.27", "1.28", "1.34"])),
        "volcano_version": draw(st.sampled_from(["1.10.2", "1.12.0"])),
    }
    return document, known


def shuffled(thing: Any, chance: random.Random) -> Any:
    """The same document with its keys in another order."""
    if isinstance(thing, dict):
        keys = list(thing)
        chance.shuffle(keys)
        return {key: shuffled(thing[key], chance) for key in keys}
    return [shuffled(item, chance) for item in thing] if isinstance(thing, list) else thing


def templates_of(result: render.Rendered) -> list[Document]:
    found = [thing["spec"]["template"] for thing in of_kind(result, "StatefulSet")]
    for thing in of_kind(result, "LeaderWorkerSet"):
        both = thing["spec"]["leaderWorkerTemplate"]
        found += [both["leaderTemplate"], both["workerTemplate"]]
    return found


def check_order(result: render.Rendered) -> None:
    kinds = [thing["kind"] for thing in result.objects]
    ranks = ["ConfigMap", "Service", "NetworkPolicy", "PodGroup", "StatefulSet", "LeaderWorkerSet",
             "PodDisruptionBudget", "ScaledObject", "HorizontalPodAutoscaler", "InterceptorRoute",
             "ServiceMonitor"]  # fmt: skip
    assert [ranks.index(kind) for kind in kinds] == sorted(ranks.index(kind) for kind in kinds)


def check_names(result: render.Rendered) -> None:
    limits = {"StatefulSet": 52, "ScaledObject": 54, "Service": 63}
    seen = set()
    for thing in result.objects:
        name = thing["metadata"]["name"]
        assert len(name) <= limits.get(thing["kind"], 253)
        assert (thing["kind"], name) not in seen
        seen.add((thing["kind"], name))
        assert thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "flexai.xpu"
        assert thing["metadata"]["labels"]["flexai.io/inferenceservice"] == result.name


def check_workloads(result: render.Rendered, pods: int) -> None:
    sets = of_kind(result, "StatefulSet")
    selectors = [json.dumps(s["spec"]["selector"], sort_keys=True) for s in sets]
    assert len(set(selectors)) == len(selectors)
    headless = {s["metadata"]["name"] for s in of_kind(result, "Service")
                if s["spec"].get("clusterIP") == "None"}  # fmt: skip
    for thing in sets:
        spec = thing["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert spec["podManagementPolicy"] == "Parallel"
        assert spec["updateStrategy"] == {"type": "OnDelete"}
        assert spec["serviceName"] in headless
    for group in of_kind(result, "PodGroup"):
        assert group["spec"]["minMember"] == pods
    for scaled in of_kind(result, "ScaledObject"):
        spec = scaled["spec"]
        target = spec["scaleTargetRef"]
        names = {(o["kind"], o["metadata"]["name"]) for o in result.objects}
        assert (target["kind"], target["name"]) in names
        if "idleReplicaCount" in spec:
            assert spec["idleReplicaCount"] == 0
            assert spec["minReplicaCount"] == spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            assert all(isinstance(value, str) for value in trigger["metadata"].values())


def check_services(result: render.Rendered) -> None:
    for thing in of_kind(result, "Service"):
        assert ("clusterIP" in thing["spec"]) == bool(thing["spec"].get("publishNotReadyAddresses"))


def check_pods(result: render.Rendered) -> None:
    (config_map,) = of_kind(result, "ConfigMap")
    for template in templates_of(result):
        spec = template["spec"]
        (volume,) = [v for v in spec["volumes"] if v["name"] == "flexai-runtime"]
        assert volume["configMap"]["name"] == config_map["metadata"]["name"]
        container = spec["containers"][0]
        assert container["image"]
        names = [entry["name"] for entry in container["env"]]
        assert len(set(names)) == len(names)
        block = container.get("resources", {})
        for name, amount in block.get("requests", {}).items():
            if "/" in name:
                assert quantity.same(amount, block["limits"][name])
        memory = quantity.amount(block.get("limits", {}).get("memory", "1Ei"))
        shm = [v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if v["name"] == "flexai-shm"]
        assert all((quantity.amount(size) or 0) < (memory or 0) for size in shm)


def check_all(result: render.Rendered, pods: int) -> None:
    check_order(result)
    check_names(result)
    check_workloads(result, pods)
    check_services(result)
    check_pods(result)


@relaxed
@given(services(), st.randoms(use_true_random=False))
def test_every_right_service(sample: tuple[Document, Document], chance: random.Random) -> None:
    document, known = sample
    before = copy.deepcopy(document)
    result = samples.rendered(document, known)
    assert document == before
    check_all(result, 1 + document["spec"]["servers"].get("worker", {}).get("replicas", 0))
    # To the byte, in whichever order the keys stand.
    other = samples.rendered(shuffled(document, chance), known)
    assert json.dumps(other.document()) == json.dumps(result.document())


@relaxed
@given(services())
def test_rendering_again_over_what_is_live_changes_no_replicas(
    sample: tuple[Document, Document],
) -> None:
    document, known = sample
    first = samples.rendered(document, known)
    for sizes in (lambda n: n, lambda _n: 0):
        live = {}
        for thing in [*of_kind(first, "StatefulSet"), *of_kind(first, "LeaderWorkerSet")]:
            spec = thing["spec"]
            scales = "scaling" in document["spec"]["flexai"]
            live[thing["metadata"]["name"]] = {
                **spec, "replicas": sizes(spec["replicas"]) if scales else spec["replicas"]
            }  # fmt: skip
        again = samples.rendered(document, known, live=live)
        assert again.requires_recreate == []
        for thing in [*of_kind(again, "StatefulSet"), *of_kind(again, "LeaderWorkerSet")]:
            assert thing["spec"]["replicas"] == live[thing["metadata"]["name"]]["replicas"]


def runtime_of(document: Document, scripts: dict[str, str] | None = None) -> str:
    made = render.render(document, facts.Facts(), scripts or SCRIPTS).rendered
    assert made is not None
    return str(of_kind(made, "ConfigMap")[0]["metadata"]["name"])


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        ("spec.flexai.engine.args", ["--enforce-eager"], True),
        (f"{LEADER}.env", [{"name": "A", "value": "1"}], True),
        ("spec.replicas", 3, False),
        ("spec.flexai.drain.prestop_seconds", 20, False),
        ("metadata.labels", {"a": "b"}, False),
    ],
)
def test_the_hash_changes_if_and_only_if_a_file_does(path: str, value: Any, changes: bool) -> None:
    changed = put(samples.service(), path, value)
    assert (runtime_of(changed) != runtime_of(samples.service())) is changes


def test_the_hash_changes_with_the_script() -> None:
    document = samples.service()
    assert runtime_of(document) != runtime_of(document, {**SCRIPTS, "run.sh": "#!/bin/sh\n"})


@settings(relaxed, max_examples=25)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4),
    st.text(st.characters(exclude_characters="\0", codec="utf-8")),
)
def test_bash_reads_back_every_word_and_value(words: list[str], value: str) -> None:
    """Whatever the user wrote, run.sh's shell sees just that."""
    document = samples.service()
    document["spec"].pop("flexai")
    plain = [word.replace("$", "S") for word in words]
    for path in (LEADER, WORKER):
        put(document, f"{path}.image", "x:1")
        put(document, f"{path}.command", ["printf", "%s\\0", "", *plain])
    put(document, f"{LEADER}.env", [{"name": "A", "value": value.replace("$", "S")}])
    found = samples.outcome(document)
    if found.problems:  # curly quotes, something like a secret
        return
    assert found.rendered is not None
    data = of_kind(found.rendered, "ConfigMap")[0]["data"]
    script = data["leader.env"] + 'printf "%s\\0" "$A"\n' + data["leader.sh"]
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == "\0".join([value.replace("$", "S"), "", *plain]) + "\0"


# -- broken services -----------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 10**12, 1.5, "", "x", "-", "Ä b", "1e999", "9" * 400, [], {},
    [None], [[]], [{}], {"": None}, {"x": {"y": []}}, {1: 2}, "$(X)", "../..", "{{ x }}", "16Gi",
    ["a", 1], float("nan"), "0", "\n", "=", "|", "a|b",
]  # fmt: skip


def places(thing: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = thing.items() if isinstance(thing, dict) else enumerate(thing)
    for key, value in items:
        found += places(value, (*path, key)) if isinstance(value, (dict, list)) else [(*path, key)]
    return found


def broken(chance: random.Random) -> Document:
    """One of the samples with odd things in it."""
    originals = [document for document, _rest in SAMPLES.values()] + [samples.document_004()]
    document = copy.deepcopy(chance.choice(originals))
    for _rest in range(chance.choice([1, 1, 1, 2, 4])):
        path = chance.choice(places(document))
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        last, how = path[-1], chance.randrange(5)
        if how == 0:
            at.pop(last)
        elif how == 1 and isinstance(at, dict):
            at[str(last) + chance.choice(["s", "x", ""])] = at.pop(last)
        elif how == 2 and isinstance(at, dict):
            keys = sorted(key.rstrip("!") for keys in service.TYPES.values() for key in keys)
            at[chance.choice(keys)] = copy.deepcopy(chance.choice(ODD))
        else:
            at[last] = copy.deepcopy(chance.choice(ODD))
        if not document:
            break
    return document


def test_broken_services_are_refused_or_valid_and_never_a_traceback() -> None:
    chance, valid = random.Random(20261125), 0
    for _rest in range(FUZZED):
        document = broken(chance)
        found = samples.outcome(document)
        assert (found.rendered is None) == bool(found.problems)
        for problem in found.problems:
            assert re.match(r"^\S.*: .+; allowed: .+; do: .+$", str(problem), re.DOTALL), problem
            assert "\n" not in str(problem)
        if found.rendered is not None:
            valid += 1
            check_order(found.rendered)
            check_names(found.rendered)
            check_pods(found.rendered)
            for thing in found.rendered.objects:
                if thing["kind"] in NATIVE:
                    assert kubernetes_validate.validate(thing, NEWEST, strict=True)
    # Both happen, or this test says little.
    assert FUZZED // 20 < valid < FUZZED // 2


@pytest.mark.soak
def test_broken_services_for_long() -> None:
    chance = random.Random(7)
    for _rest in range(20000):
        found = samples.outcome(broken(chance))
        for thing in found.rendered.objects if found.rendered else ():
            if thing["kind"] in NATIVE:
                assert kubernetes_validate.validate(thing, NEWEST, strict=True)
