# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Configurations (v1) of NVIDIA's device plugin, read strictly (pure).

The plugin drops keys that it doesn't know and mends or ignores much of the rest with a line in its
log, so a typing error is a cluster without the sharing that was asked for. Here each is an error.
"""

from __future__ import annotations

import json
import re
import typing as t

from ._errors import XpuError

VERSION = "v1"
GPU = "nvidia.com/gpu"
SHARED = ".shared"
# The kubelet's limit for the part after the slash.
MAX_NAME = 63
STRATEGIES = ("envvar", "volume-mounts", "cdi-annotations", "cdi-cri")
SHARINGS = ("timeSlicing", "mps")
_NAME = re.compile(r"^[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$")
# A key of a ConfigMap that is a label's value too.
_CONFIG_NAME = re.compile(r"^[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$")


class Choice(tuple):  # type: ignore[type-arg]
    """The words that a key admits."""


# What each key of a configuration holds: a type, the words it admits, or further keys. As in
# api/config/v1 of k8s-device-plugin 0.17.
_SHARING: dict[str, t.Any] = {
    "renameByDefault": bool,
    "failRequestsGreaterThanOne": bool,
    "resources": list,
}
SCHEMA: dict[str, t.Any] = {
    "version": Choice((VERSION,)),
    "flags": {
        "migStrategy": Choice(("none", "single", "mixed")),
        "failOnInitError": bool,
        "mpsRoot": str,
        "nvidiaDriverRoot": str,
        "nvidiaDevRoot": str,
        "gdsEnabled": bool,
        "mofedEnabled": bool,
        "useNodeFeatureAPI": bool,
        "deviceDiscoveryStrategy": Choice(("auto", "nvml", "tegra")),
        "plugin": {
            "passDeviceSpecs": bool,
            "deviceListStrategy": (str, list),
            "deviceIDStrategy": Choice(("uuid", "index")),
            "cdiAnnotationPrefix": str,
            "nvidiaCTKPath": str,
            "containerDriverRoot": str,
        },
        "gfd": {
            "oneshot": bool,
            "noTimestamp": bool,
            "sleepInterval": str,
            "outputFile": str,
            "machineTypeFile": str,
        },
    },
    "resources": {},  # its keys are read and thrown away
    "sharing": {"timeSlicing": _SHARING, "mps": _SHARING},
    "imex": {"channelIDs": list, "required": bool},
}
RESOURCE = ("name", "replicas")
IGNORED = ("rename", "devices")

Config = t.Mapping[str, t.Any]


def _refuse(where: str, what: str, remedy: str) -> t.NoReturn:
    raise XpuError(f"nvidia_device_plugin_configs: {where} {what}.", f"{remedy}.")


def _says(value: t.Any) -> str:
    return repr(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__


def _check_keys(where: str, found: t.Any, schema: t.Mapping[str, t.Any]) -> None:
    if not isinstance(found, t.Mapping):
        _refuse(where, f"is {_says(found)}, not a mapping", "write its keys below it")
    for key, value in found.items():
        path = f"{where}.{key}"
        if key not in schema:
            _refuse(
                path,
                "is no key that the plugin knows; it would be dropped without a word",
                f"{where} may hold {', '.join(schema)}" if schema else f"leave {where} out",
            )
        _check_value(path, value, schema[key])


def _check_value(path: str, value: t.Any, wanted: t.Any) -> None:
    if isinstance(wanted, Choice):
        if value not in wanted:
            _refuse(path, f"is {_says(value)}", f"take {' or '.join(wanted)}")
    elif isinstance(wanted, dict):
        _check_keys(path, value, wanted)
    elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        names = wanted if isinstance(wanted, tuple) else (wanted,)
        _refuse(
            path,
            f"is {_says(value)}",
            f"write a {' or '.join(one.__name__ for one in names)}",
        )


def _check_pasted(where: str, config: t.Any) -> None:
    """Document 003's ConfigMap: the chart's own path of keys inside a configuration."""
    if isinstance(config, str):
        _refuse(where, "is a text", "write the configuration itself, without `|-`")
    if isinstance(config, t.Mapping) and ("config" in config or "map" in config):
        _refuse(
            where,
            "holds the path config.map of the chart's values, which the plugin drops with "
            "everything below it",
            f"write what stands below map.<name>: {where}: {{version: {VERSION}, sharing: …}}",
        )


def _check_resource(where: str, entry: t.Any, renamed: bool) -> None:
    if not isinstance(entry, t.Mapping):
        _refuse(where, f"is {_says(entry)}, not a mapping", "write name and replicas below it")
    for key in entry:
        if key in IGNORED:
            _refuse(
                f"{where}.{key}",
                "is read by the plugin and thrown away (0.17)",
                "leave it out; renameByDefault renames, and replicas hold for all cards of a node",
            )
        if key not in RESOURCE:
            _refuse(f"{where}.{key}", "is no key that the plugin knows", "write name and replicas")
    name, replicas = entry.get("name"), entry.get("replicas")
    if not isinstance(name, str) or not _is_resource(name):
        _refuse(f"{where}.name", f"is {_says(name)}", f"name a resource, such as {GPU}")
    short = name.rpartition("/")[2] + (SHARED if renamed else "")
    if len(short) > MAX_NAME:
        _refuse(
            f"{where}.name",
            f"becomes {short}, which has {len(short)} characters",
            f"a resource's name has {MAX_NAME} at most after the slash",
        )
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 2:
        _refuse(f"{where}.replicas", f"is {_says(replicas)}", "write a whole number from 2 on")


def _is_resource(name: str) -> bool:
    domain, slash, rest = name.rpartition("/")
    return bool(_NAME.match(rest)) and (not slash or domain == "nvidia.com")


def _check_sharing(where: str, config: Config) -> None:
    sharing = config.get("sharing") or {}
    used = [kind for kind in SHARINGS if kind in sharing]
    if len(used) > 1:
        _refuse(
            f"{where}.sharing",
            "has timeSlicing and mps; the plugin takes mps and says nothing of the other",
            "keep one of them; another node may have another configuration",
        )
    for kind in used:
        path = f"{where}.sharing.{kind}"
        resources = sharing[kind].get("resources")
        if not resources:
            _refuse(f"{path}.resources", "lists nothing", f"list {GPU} with its replicas")
        renamed = bool(sharing[kind].get("renameByDefault"))
        seen: set[str] = set()
        for number, entry in enumerate(resources):
            _check_resource(f"{path}.resources[{number}]", entry, renamed)
            name = full_name(entry["name"])
            if name in seen:
                _refuse(f"{path}.resources[{number}]", f"repeats {name}", "list it once")
            seen.add(name)
    if "mps" in used:
        _check_mps(where, config)


def _check_mps(where: str, config: Config) -> None:
    if (config.get("flags") or {}).get("migStrategy") == "mixed":
        _refuse(
            f"{where}.flags.migStrategy",
            "is 'mixed' with sharing.mps, which the plugin doesn't start with",
            "take single or none, or share by timeSlicing",
        )
    if config["sharing"]["mps"].get("failRequestsGreaterThanOne") is False:
        _refuse(
            f"{where}.sharing.mps.failRequestsGreaterThanOne",
            "is false; the plugin sets it to true with mps whatever stands there",
            "leave it out",
        )


def _check_strategy(where: str, config: Config, strategy: str) -> None:
    """An environment variable, which the chart sets from the variable, goes before the file."""
    plugin = (config.get("flags") or {}).get("plugin") or {}
    written = plugin.get("deviceListStrategy")
    if written is not None and written not in (strategy, [strategy]):
        _refuse(
            f"{where}.flags.plugin.deviceListStrategy",
            f"is {written!r}, and nvidia_device_plugin_device_list_strategy, which goes before it, "
            f"{strategy!r}",
            "leave it out here",
        )


def check(configs: t.Any, default: str, strategy: str, nodes: t.Mapping[str, str]) -> None:
    """Refuse what the plugin would refuse, ignore or mend; *nodes* is node → configuration."""
    if not isinstance(configs, t.Mapping) or not configs:
        raise XpuError(
            f"nvidia_device_plugin_configs is {_says(configs) if configs else 'empty'}.",
            "name at least one configuration: {default: {version: v1}}.",
        )
    for name, config in configs.items():
        where = str(name)
        if not _CONFIG_NAME.match(where):
            _refuse(where, "is no name", "use letters, digits, -, _ and . (at most 63)")
        _check_pasted(where, config)
        _check_keys(where, config, SCHEMA)
        if "version" not in config:
            _refuse(where, "has no version", f"write version: {VERSION}")
        _check_sharing(where, config)
        _check_strategy(where, config, strategy)
    for what, name in {"nvidia_device_plugin_default": default, **_uses(nodes)}.items():
        if name not in configs:
            raise XpuError(
                f"{what} is {name!r}, which nvidia_device_plugin_configs doesn't have; it has "
                f"{', '.join(sorted(configs))}.",
                "correct the name.",
            )


def check_nodes(nodes: t.Sequence[str], configs: t.Mapping[str, str]) -> None:
    """Refuse an empty list, which a scheduler would take for every node, and strangers."""
    if not nodes:
        raise XpuError(
            "nvidia_device_plugin_nodes is empty.", "name the nodes that NVIDIA's plugin serves."
        )
    strangers = sorted(set(configs) - set(nodes))
    if strangers:
        raise XpuError(
            f"nvidia_device_plugin_node_configs names {', '.join(strangers)}, which "
            "nvidia_device_plugin_nodes doesn't.",
            "add the node there, or take it out here.",
        )


def _uses(nodes: t.Mapping[str, str]) -> dict[str, str]:
    return {f"nvidia_device_plugin_node_configs: {node}": name for node, name in nodes.items()}


# -- what follows from it ----------------------------------------------------------------------


def full_name(resource: str) -> str:
    """The plugin puts NVIDIA's domain before a name without one."""
    return resource if "/" in resource else f"nvidia.com/{resource}"


class Offer(t.NamedTuple):
    """A resource that a node shall show, and what its number is a multiple of."""

    resource: str
    multiple: int


def offer(config: Config) -> Offer:
    """What a node with whole cards shows under this configuration."""
    sharing = config.get("sharing") or {}
    for kind in SHARINGS:
        for entry in (sharing.get(kind) or {}).get("resources", ()):
            if full_name(entry["name"]) == GPU:
                renamed = SHARED if sharing[kind].get("renameByDefault") else ""
                return Offer(GPU + renamed, int(entry["replicas"]))
    return Offer(GPU, 1)


def uses_mps(configs: t.Mapping[str, Config]) -> bool:
    return any("mps" in (config.get("sharing") or {}) for config in configs.values())


def shortage(node: t.Mapping[str, t.Any], wanted: Offer) -> str:
    """Why a node's capacity is not what its configuration says; empty when it is."""
    capacity = (node.get("status") or {}).get("capacity") or {}
    found = str(capacity.get(wanted.resource, "0"))
    number = int(found) if found.isdigit() else 0
    if number and number % wanted.multiple == 0:
        return ""
    name = node["metadata"]["name"]
    shown = {key: value for key, value in capacity.items() if str(key).startswith("nvidia.com/")}
    said = ", ".join(f"{key} {value}" for key, value in sorted(shown.items())) or "none of NVIDIA's"
    times = f" in multiples of {wanted.multiple}" if wanted.multiple > 1 else ""
    return f"node {name} shows {said}; wanted is {wanted.resource}{times}"


def affinity(nodes: t.Iterable[str]) -> dict[str, t.Any]:
    """Exactly these nodes, by name: no label has to be set and taken back."""
    terms = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        for node in sorted(nodes)
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}


def render(config: Config) -> str:
    """A configuration as the plugin reads it: JSON, which is YAML, the same text every time."""
    return json.dumps(config, indent=1, sort_keys=True) + "\n"


def chart_values(
    configs: t.Mapping[str, Config],
    default: str,
    strategy: str,
    nodes: t.Iterable[str],
    runtime_class: str,
) -> dict[str, t.Any]:
    """Values for NVIDIA's chart."""
    return {
        "config": {
            "map": {name: render(config) for name, config in sorted(configs.items())},
            "default": default,
        },
        "deviceListStrategy": strategy,
        "affinity": affinity(nodes),
        "runtimeClassName": runtime_class or None,
        # It asks NVML about all cards of the node. A hardened toolkit shows these to no other pod
        # that only asks by its environment, as the chart's does.
        "securityContext": {"privileged": True},
        "gfd": {"enabled": False},
    }
