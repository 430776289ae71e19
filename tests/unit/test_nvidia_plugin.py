# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations of NVIDIA's plugin are read strictly where it is lax; no card is given twice."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.nvidia_plugin import nvidia_plugin
from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_plugin as plugin
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import nvidia_plugin_nodes as nodes_module
from hypothesis import given
from hypothesis import strategies as st

TEN = {"name": "nvidia.com/gpu", "replicas": 10}
SLICED: dict[str, Any] = {
    "version": "v1",
    "flags": {"migStrategy": "none"},
    "sharing": {"timeSlicing": {"renameByDefault": True, "resources": [TEN]}},
}


def changed(path: str, value: Any, config: Any = None) -> dict[str, Any]:
    """A configuration with one place changed; ``...`` takes the key away."""
    result = copy.deepcopy(SLICED if config is None else config)
    *keys, last = path.split(".")
    place = result
    for key in keys:
        place = place.setdefault(key, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return result


MPS = changed("sharing", {"mps": {"resources": [TEN]}})


def check(config: Any, strategy: str = "volume-mounts") -> None:
    plugin.check({"default": config}, "default", strategy, {})


@pytest.mark.parametrize(
    "config",
    [
        {"version": "v1"},
        SLICED,
        MPS,
        changed("flags.migStrategy", "single", MPS),
        changed("flags.migStrategy", "mixed"),
        changed("flags.plugin", {"deviceListStrategy": ["volume-mounts"]}),
        changed("sharing.timeSlicing.resources", [{"name": "mig-1g.5gb", "replicas": 2}, TEN]),
        changed("flags.gfd", {"sleepInterval": "60s"}),
        changed("imex", {"channelIDs": [0], "required": True}),
    ],
)
def test_what_the_plugin_does_as_written_is_taken(config: Any) -> None:
    check(config)


# The plugin takes each without an error, or with one in the log of a pod that restarts.
REFUSED: dict[str, tuple[Any, str]] = {
    "unknown key": (
        changed("sharing.timeSlicing.replica", 4),
        "default.sharing.timeSlicing.replica is no key that the plugin knows; it would be dropped "
        "without a word. Remedy: default.sharing.timeSlicing may hold renameByDefault, "
        "failRequestsGreaterThanOne, resources.",
    ),
    "key at the wrong place": (changed("migStrategy", "none"), "default.migStrategy is no key"),
    "document 003's ConfigMap": (
        {"config": {"map": {"default": SLICED}}},
        "default holds the path config.map of the chart's values, which the plugin drops with "
        "everything below it. Remedy: write what stands below map.<name>",
    ),
    "the same as a text": ("config:\n  map: {}\n", "default is a text. Remedy: write the config"),
    "no version": (changed("version", ...), "default has no version. Remedy: write version: v1."),
    "another version": (changed("version", "v2"), "default.version is 'v2'. Remedy: take v1."),
    "one replica": (
        changed("sharing.timeSlicing.resources", [{**TEN, "replicas": 1}]),
        "default.sharing.timeSlicing.resources[0].replicas is 1. Remedy: write a whole number",
    ),
    "true is no number": (
        changed("sharing.timeSlicing.resources", [{**TEN, "replicas": True}]),
        "resources[0].replicas is True",
    ),
    "no replicas": (
        changed("sharing.timeSlicing.resources", [{"name": "nvidia.com/gpu"}]),
        "resources[0].replicas is NoneType",
    ),
    "nothing shared": (
        changed("sharing.timeSlicing.resources", []),
        "default.sharing.timeSlicing.resources lists nothing",
    ),
    "listed twice": (
        changed("sharing.timeSlicing.resources", [TEN, {"name": "gpu", "replicas": 4}]),
        "resources[1] repeats nvidia.com/gpu. Remedy: list it once.",
    ),
    "rename": (
        changed("sharing.timeSlicing.resources", [{**TEN, "rename": "nvidia.com/slice"}]),
        "resources[0].rename is read by the plugin and thrown away (0.17)",
    ),
    "devices": (
        changed("sharing.timeSlicing.resources", [{**TEN, "devices": [0]}]),
        "resources[0].devices is read by the plugin and thrown away (0.17)",
    ),
    "another's resource": (
        changed("sharing.timeSlicing.resources", [{"name": "amd.com/gpu", "replicas": 2}]),
        "resources[0].name is 'amd.com/gpu'. Remedy: name a resource, such as nvidia.com/gpu.",
    ),
    "a name that renaming makes too long": (
        changed("sharing.timeSlicing.resources", [{"name": "x" * 60, "replicas": 2}]),
        "which has 67 characters. Remedy: a resource's name has 63 at most",
    ),
    "both sharings": (
        changed("sharing.mps", {"resources": [TEN]}),
        "default.sharing has timeSlicing and mps; the plugin takes mps and says nothing",
    ),
    "mps with mig mixed": (
        changed("flags.migStrategy", "mixed", MPS),
        "default.flags.migStrategy is 'mixed' with sharing.mps, which the plugin doesn't start",
    ),
    "mps and more than one": (
        changed("sharing.mps.failRequestsGreaterThanOne", False, MPS),
        "failRequestsGreaterThanOne is false; the plugin sets it to true with mps",
    ),
    "unknown word": (
        changed("flags.migStrategy", "sinlge"),
        "default.flags.migStrategy is 'sinlge'. Remedy: take none or single or mixed.",
    ),
    "a text for a truth": (
        changed("flags.failOnInitError", "true"),
        "default.flags.failOnInitError is 'true'. Remedy: write a bool.",
    ),
    "overridden by the chart": (
        changed("flags.plugin", {"deviceListStrategy": "envvar"}),
        "deviceListStrategy is 'envvar', and nvidia_device_plugin_device_list_strategy, which goes "
        "before it, 'volume-mounts'. Remedy: leave it out here.",
    ),
    "resources that are not to be chosen": (
        changed("resources", {"gpus": []}),
        "default.resources.gpus is no key that the plugin knows; it would be dropped without a "
        "word. Remedy: leave default.resources out.",
    ),
    "no mapping": ([], "default is list, not a mapping"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_plugin_passes_over_is_refused(name: str) -> None:
    config, said = REFUSED[name]
    with pytest.raises(XpuError, match=re.escape(said)) as raised:
        check(config)
    assert str(raised.value).startswith("nvidia_device_plugin_configs: default")
    assert raised.value.remedy


def test_names_that_no_configuration_has_are_refused() -> None:
    configs = {"default": SLICED, "whole": {"version": "v1"}}
    with pytest.raises(XpuError, match="nvidia_device_plugin_default is 'shard', which"):
        plugin.check(configs, "shard", "volume-mounts", {})
    with pytest.raises(XpuError, match=r"node_configs: gpu1 is 'wohle'.*it has default, whole"):
        plugin.check(configs, "default", "volume-mounts", {"gpu1": "wohle"})
    with pytest.raises(XpuError, match="a b is no name"):
        plugin.check({"a b": SLICED}, "a b", "volume-mounts", {})
    with pytest.raises(XpuError, match="nvidia_device_plugin_configs is empty"):
        plugin.check({}, "default", "volume-mounts", {})


# -- properties ------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


def known(config: Any, schema: Any) -> bool:
    """Whether the plugin keeps every key of a configuration."""
    if not isinstance(schema, dict):
        return True
    return isinstance(config, dict) and all(
        key in schema and known(value, schema[key]) for key, value in config.items()
    )


@given(json_values)
def test_anything_is_taken_whole_or_refused_with_a_remedy(value: Any) -> None:
    refused = None
    try:
        check(value)
    except XpuError as error:
        refused = error
    if refused is None:
        assert known(value, plugin.SCHEMA)
    else:
        assert str(refused).startswith("nvidia_device_plugin_configs: default")
        assert refused.remedy


places = st.sampled_from(
    ["", "flags", "flags.plugin", "flags.gfd", "sharing", "sharing.timeSlicing", "imex"]
)


@given(places, st.text(min_size=1, max_size=12).filter(lambda text: "." not in text), json_values)
def test_a_strange_key_is_refused_wherever_it_stands(place: str, key: str, value: Any) -> None:
    schema: Any = plugin.SCHEMA
    for part in filter(None, place.split(".")):
        schema = schema[part]
    path = f"{place}.{key}" if place else key
    if key in schema or key in ("config", "map"):
        return
    with pytest.raises(
        XpuError, match=re.escape(f"default.{path} is no key that the plugin knows")
    ):
        check(changed(path, value))


resources = st.builds(
    lambda name, replicas: {"name": name, "replicas": replicas},
    st.sampled_from(["nvidia.com/gpu", "gpu", "nvidia.com/mig-1g.5gb"]),
    st.integers(-3, 300),
)


@given(st.sampled_from(["timeSlicing", "mps"]), resources, st.booleans(), st.integers(1, 16))
def test_a_node_that_does_as_told_is_content_and_one_card_less_a_share_is_not(
    kind: str, entry: dict[str, Any], renamed: bool, cards: int
) -> None:
    config = {
        "version": "v1",
        "sharing": {kind: {"renameByDefault": renamed, "resources": [entry]}},
    }
    if entry["replicas"] < 2:
        with pytest.raises(XpuError, match=r"replicas is "):
            check(config)
        return
    check(config)
    wanted = plugin.offer(config)
    if plugin.full_name(entry["name"]) == "nvidia.com/gpu":
        resource = "nvidia.com/gpu" + (".shared" if renamed else "")
        assert (wanted.resource, wanted.multiple) == (resource, entry["replicas"])
    else:
        assert (wanted.resource, wanted.multiple) == ("nvidia.com/gpu", 1)
    whole = cards * wanted.multiple
    assert plugin.shortage(node("n", capacity={wanted.resource: whole}), wanted) == ""
    if wanted.multiple > 1:
        assert plugin.shortage(node("n", capacity={wanted.resource: whole - 1}), wanted)
    assert plugin.shortage(node("n"), wanted)


@given(st.permutations(["a", "b", "c"]))
def test_rendering_does_not_depend_on_the_order_of_keys(order: list[str]) -> None:
    configs = dict.fromkeys(order, SLICED)
    first = plugin.chart_values(configs, "a", "volume-mounts", order, "nvidia")
    assert json.dumps(first) == json.dumps(
        plugin.chart_values(dict(sorted(configs.items())), "a", "volume-mounts", "abc", "nvidia")
    )


# -- the filter ------------------------------------------------------------------------------


def test_the_filter_gives_values_and_what_to_expect() -> None:
    result = nvidia_plugin(
        {"default": {"version": "v1"}, "shared": SLICED},
        nodes=["gpu1", "gpu2"],
        node_configs={"gpu2": "shared"},
        runtime_class="nvidia",
    )
    assert result["offers"] == {
        "gpu1": {"resource": "nvidia.com/gpu", "multiple": 1},
        "gpu2": {"resource": "nvidia.com/gpu.shared", "multiple": 10},
    }
    assert json.loads(result["values"]["config"]["map"]["shared"]) == SLICED
    assert result["values"]["config"]["default"] == "default"
    assert result["mps"] is False


@pytest.mark.parametrize(
    ("nodes", "own", "said"),
    [
        ([], {}, "nvidia_device_plugin_nodes is empty"),
        (["a"], {"b": "default"}, "names b, which nvidia_device_plugin_nodes doesn't"),
    ],
)
def test_the_filter_refuses_nodes(nodes: list[str], own: dict[str, str], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        nvidia_plugin({"default": {"version": "v1"}}, nodes=nodes, node_configs=own)


# -- nodes -----------------------------------------------------------------------------------


def node(
    name: str, label: str = "", record: str = "", capacity: dict[str, int] | None = None
) -> dict[str, Any]:
    shown = {key: str(value) for key, value in (capacity or {}).items()}
    return {
        "metadata": {
            "name": name,
            "labels": {nodes_module.LABEL: label} if label else {},
            "annotations": {nodes_module.RECORD: record} if record else {},
        },
        "status": {"capacity": shown, "allocatable": shown},
    }


def daemon_set(name: str, release: str = "") -> dict[str, Any]:
    notes = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": "ns"}
    container = {"image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.4"}
    return {
        "metadata": {"name": name, "namespace": "ns", "annotations": notes if release else {}},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


def refusals(*nodes: dict[str, Any], wanted: str = "n", sets: Any = ()) -> list[str]:
    by_name = {one["metadata"]["name"]: one for one in nodes}
    return nodes_module.refusals(by_name, [wanted], sets, "ours", "ns")


def test_a_node_that_gives_slices_is_refused() -> None:
    (said,) = refusals(node("n", capacity={"huawei.com/vgpu-number": 20}))
    assert "node n: gpu-device-plugin gives its cards out as slices" in said
    labelled = node("n")
    labelled["metadata"]["labels"]["gpupool.com/gpu-ready"] = "true"
    (said,) = refusals(labelled)
    assert "take the host out of flexai_kubernetes" in said


@pytest.mark.parametrize(
    "resource", ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g"]
)
def test_a_node_that_another_plugin_serves_is_refused_until_that_is_ours(resource: str) -> None:
    served = node("n", capacity={resource: 2})
    (said,) = refusals(served, sets=[daemon_set("theirs")])
    assert "somebody else's plugin (ns/theirs) gives its cards out already" in said
    assert refusals(served, sets=[daemon_set("own", "ours")]) == []
    assert refusals(node("n", capacity={resource: 0})) == []


def test_an_unknown_node_is_named_with_those_that_there_are() -> None:
    assert refusals(node("a"), wanted="b") == ["node b: the cluster has a only"]


LABEL = nodes_module.LABEL
PLANS: dict[str, tuple[dict[str, Any], dict[str, str], list[str], list[str]]] = {
    "set": (node("n"), {"n": "x"}, [f"node n: {LABEL} absent → x"], []),
    "again": (node("n", "x", "x"), {"n": "x"}, [], []),
    "another": (node("n", "x", "x"), {"n": "y"}, [f"node n: {LABEL} x → y"], []),
    "back to the default": (node("n", "x", "x"), {}, [f"node n: {LABEL} x → absent"], []),
    "changed since": (
        node("n", "theirs", "x"),
        {},
        [f"node n: record of label {LABEL} → absent"],
        [f"label {LABEL}=theirs of node n: changed since we set it"],
    ),
    "another's, in force": (
        node("n", "theirs"),
        {},
        [],
        [f"label {LABEL}=theirs of node n: set by somebody else, and in force"],
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_labels_are_set_and_only_ours_taken_back(name: str) -> None:
    found, configs, steps, left = PLANS[name]
    planned, stays = nodes_module.plan({"n": found}, ["n"], configs)
    assert ([step.what for step in planned], stays) == (steps, left)
    for step in planned:
        body = step.body["metadata"]
        after = node(
            "n", body["labels"][LABEL] or "", body["annotations"][nodes_module.RECORD] or ""
        )
        assert nodes_module.plan({"n": after}, ["n"], configs)[0] == []


def test_a_capacity_that_is_not_as_told_says_what_is_shown() -> None:
    shown = node("n", capacity={"nvidia.com/gpu": 2, "cpu": 4})
    assert plugin.shortage(shown, plugin.Offer("nvidia.com/gpu.shared", 10)) == (
        "node n shows nvidia.com/gpu 2; wanted is nvidia.com/gpu.shared in multiples of 10"
    )
    # Document 003's two numbers: the one that is registered counts.
    both = node("n", capacity={"nvidia.com/gpu": 2, "nvidia.com/gpu.shared": 20})
    assert plugin.shortage(both, plugin.Offer("nvidia.com/gpu.shared", 10)) == ""
