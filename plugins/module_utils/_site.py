# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What a site may write, and what is wrong with what it wrote (pure; runs on the controller)."""

from __future__ import annotations

import difflib
import typing as t

from ._decision import version_key

SITE_VARIABLES: dict[str, dict[str, t.Any]] = {
    "flexai_site": {"type": "str", "default": "default"},
    "flexai_manifest": {"type": "path", "required": True},
    "flexai_kubeconfig": {"type": "path", "default": ""},
    "flexai_root": {"type": "path", "default": "/"},
    "flexai_verdict_file": {"type": "path", "default": ""},
    "flexai_profile": {
        "type": "str",
        "default": "supported",
        "choices": ["supported", "documents"],
    },
    # Set by the inventory plugin of the testbed.
    "flexai_testbed_address": {"type": "str", "default": ""},
}
SITE_PREFIX = "flexai_"
# Registered by our own plays, so they may be seen among a host's variables.
OWN_RESULTS = ("preflight_probe", "nvidia_driver_result", "flexai_verdict", "flexai_node_verdict")

# 1.17.4 is the first toolkit without the known container escapes; driver branches before 580 get
# no security fixes any more.
SUPPORTED_TOOLKIT = "1.17.4"
SUPPORTED_DRIVER = "580"
# The CDI handler that slices run on came with this toolkit.
OLDEST_TOOLKIT = "1.13.0"
OPEN_MODULE_SINCE = "515"


def unknown_variables(
    names: t.Iterable[str], known: t.Collection[str], prefixes: t.Collection[str]
) -> dict[str, str]:
    """Names that look like ours but aren't → the nearest name that is (empty when none is near)."""
    unknown = {}
    for name in sorted(names):
        ours = name.startswith(tuple(prefixes))
        if ours and name not in known and name not in OWN_RESULTS:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            unknown[name] = near[0] if near else ""
    return unknown


def contradictions(values: t.Mapping[str, t.Any]) -> list[str]:
    """Versions and choices that can't stand together, each with its remedy."""
    toolkit = str(values["container_toolkit_version"])
    driver = str(values["nvidia_driver_version"])
    found = []
    if values["flexai_profile"] == "supported":
        if version_key(toolkit) < version_key(SUPPORTED_TOOLKIT):
            found.append(
                f"container_toolkit_version {toolkit} has known container escapes; take "
                f"{SUPPORTED_TOOLKIT} or newer, or set flexai_profile: documents"
            )
        if version_key(driver) < version_key(SUPPORTED_DRIVER):
            found.append(
                f"nvidia_driver_version {driver} is of a branch that gets no fixes any more; take "
                f"{SUPPORTED_DRIVER} or newer, or set flexai_profile: documents"
            )
    if version_key(toolkit) < version_key(OLDEST_TOOLKIT):
        found.append(
            f"container_toolkit_version {toolkit} lacks the CDI handler that slices run on; take "
            f"{OLDEST_TOOLKIT} or newer"
        )
    if values["nvidia_driver_kernel_module_type"] == "open" and version_key(driver) < version_key(
        OPEN_MODULE_SINCE
    ):
        found.append(
            f"nvidia_driver_kernel_module_type open needs driver {OPEN_MODULE_SINCE} or newer, "
            f"nvidia_driver_version is {driver}; take proprietary"
        )
    return found


def duplicates(names: t.Mapping[str, str]) -> list[str]:
    """Inventory hosts that mean the same thing; *names* is inventory name → address or node."""
    owners: dict[str, list[str]] = {}
    for host, name in names.items():
        owners.setdefault(name, []).append(host)
    return [
        f"{' and '.join(sorted(hosts))} are both {name}"
        for name, hosts in sorted(owners.items())
        if len(hosts) > 1
    ]


# -- the plan of all hosts -------------------------------------------------------------------

Probes = t.Mapping[str, t.Mapping[str, t.Any]]


def plan_faults(probes: Probes) -> list[str]:
    """Why the run must stop: hosts that didn't answer, couldn't be looked at, or are blocked."""
    faults = []
    for host, probe in sorted(probes.items()):
        if probe.get("unreachable") or not probe:
            said = str(probe.get("msg") or "no answer").strip().splitlines()
            faults.append(
                f"{host} is unreachable ({said[0]}). Remedy: bring it up and check its address and "
                "credentials, or leave it out with --limit."
            )
        elif probe.get("failed"):
            faults.append(f"{host} could not be looked at: {probe.get('msg')}")
        else:
            faults += [
                f"{host}: {step['component']} is blocked: {step['reason']}."
                for step in probe["plan"]
                if step["action"] == "blocked"
            ]
    return faults


def plan_lines(probes: Probes) -> list[str]:
    """The plan for people: one line per component that changes, or one that says nothing does."""
    steps = [
        (host, step["component"], step["action"], step["reason"])
        for host, probe in sorted(probes.items())
        for step in probe.get("plan", ())
        if step["action"] != "ok" or step["reason"]
    ]
    if not steps:
        return [f"plan: nothing to do on {len(probes)} hosts"]
    widths = [max(len(step[column]) for step in steps) for column in range(3)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(step, widths)) + "  " + step[3]
        for step in steps
    ]
