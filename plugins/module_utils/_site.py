# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What a site may write, and what is wrong with what it wrote (pure; runs on the controller)."""

from __future__ import annotations

import difflib
import typing as t

from . import _cuda_compat as cuda_compat
from ._decision import version_key
from ._errors import XpuError

SITE_VARIABLES: dict[str, dict[str, t.Any]] = {
    "flexai_site": {"type": "str", "default": "default"},
    "flexai_manifest": {"type": "path", "required": True},
    "flexai_source": {"type": "str", "default": "manifest", "choices": ["manifest", "bundle"]},
    "flexai_lock": {"type": "path", "default": ""},
    "flexai_bundle": {"type": "path", "default": ""},
    "flexai_kubeconfig": {"type": "path", "default": ""},
    "flexai_root": {"type": "path", "default": "/"},
    "flexai_verdict_file": {"type": "path", "default": ""},
    "flexai_report": {"type": "path", "default": "flexai-report"},
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

OPEN_MODULE_SINCE = "515"


class Floor(t.NamedTuple):
    """What is wrong with every version of something that is older than *since*."""

    variable: str
    since: str
    danger: str
    refused_by: tuple[str, ...]

    def hurts(self, values: t.Mapping[str, t.Any]) -> bool:
        return version_key(str(values[self.variable])) < version_key(self.since)


_TOOLKIT, _DRIVER = "container_toolkit_version", "nvidia_driver_version"
_ALL, _SUPPORTED = ("supported", "documents"), ("supported",)
# In the order in which they are told. A floor that the site's profile doesn't refuse is a warning.
FLOORS = (
    Floor(_TOOLKIT, "1.13.0", "it lacks the CDI handler that slices run on", _ALL),
    Floor(
        _TOOLKIT,
        "1.16.2",
        "CVE-2024-0132 (mended in 1.16.2: an image reaches the host's file system while its "
        "container is set up)",
        _SUPPORTED,
    ),
    Floor(
        _TOOLKIT,
        "1.17.4",
        "CVE-2025-23359 (mended in 1.17.4: a way round the mending of CVE-2024-0132)",
        _SUPPORTED,
    ),
    Floor(
        _TOOLKIT,
        "1.17.4",
        "an image that ships cuda-compat gets its own libcuda in place of the host's under runtime "
        "nvidia (mended in 1.17.4)",
        _SUPPORTED,
    ),
    Floor(
        _TOOLKIT,
        "1.17.8",
        "CVE-2025-23266 (mended in 1.17.8: an image's own library is loaded by a hook that runs as "
        "root on the host)",
        _SUPPORTED,
    ),
    Floor(
        _DRIVER,
        "550",
        "driver branches before 550 get no security fixes any more (535 until June 2026)",
        _SUPPORTED,
    ),
    Floor(
        _DRIVER,
        "580.65.06",
        "programs built with CUDA 13 don't run on it (they do from 580.65.06 on)",
        (),
    ),
)


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


def _hurting(values: t.Mapping[str, t.Any], refused: bool) -> dict[str, list[Floor]]:
    """Variable → the floors that its value is under, either those that refuse it or the others."""
    found: dict[str, list[Floor]] = {}
    for floor in FLOORS:
        if floor.hurts(values) and refused == (values["flexai_profile"] in floor.refused_by):
            found.setdefault(floor.variable, []).append(floor)
    return found


def _told(values: t.Mapping[str, t.Any], floors: t.Sequence[Floor]) -> tuple[str, str]:
    """(what is wrong, the first version without any of it)"""
    variable = floors[0].variable
    newest = max((floor.since for floor in floors), key=version_key)
    return f"{variable} {values[variable]}: " + "; ".join(f.danger for f in floors), newest


def contradictions(values: t.Mapping[str, t.Any]) -> list[str]:
    """Versions and choices that can't stand together, each with its reason and remedy."""
    found = []
    for floors in _hurting(values, refused=True).values():
        wrong, since = _told(values, floors)
        excusable = all("documents" not in floor.refused_by for floor in floors)
        way_out = ", or accept this with flexai_profile: documents" if excusable else ""
        found.append(f"{wrong}. Remedy: take {since} or newer{way_out}.")
    driver = str(values[_DRIVER])
    wants_open = values["nvidia_driver_kernel_module_type"] == "open"
    if wants_open and version_key(driver) < version_key(OPEN_MODULE_SINCE):
        found.append(
            f"nvidia_driver_kernel_module_type open: driver {driver} has no open module. Remedy: "
            f"take {_DRIVER} {OPEN_MODULE_SINCE} or newer, or nvidia_driver_kernel_module_type: "
            "proprietary."
        )
    cuda = str(values.get("cuda_toolkit_version") or "")
    if cuda:
        found += _cuda_faults(driver, cuda)
    return found


def _cuda_faults(driver: str, cuda: str) -> list[str]:
    """Why programs of the wanted CUDA toolkit can't run on the wanted driver."""
    try:
        said = cuda_compat.answer(cuda_compat.Question(driver, cuda))
    except XpuError as error:
        return [f"cuda_toolkit_version: {error.msg}. Remedy: {error.remedy}."]
    if said.runs:
        return []
    remedy = f"take another {_DRIVER}, or an older cuda_toolkit_version"
    return [f"cuda_toolkit_version {cuda}: {said.reason}. Remedy: {remedy}."]


def dangers(values: t.Mapping[str, t.Any]) -> list[str]:
    """What is taken although something is wrong with it: warnings."""
    found = []
    for floors in _hurting(values, refused=False).values():
        wrong, since = _told(values, floors)
        excused = any(floor.refused_by for floor in floors)
        why = "Taken because of flexai_profile: documents; " if excused else ""
        found.append(f"{wrong}. {why}{since} or newer is without.")
    if values["container_toolkit_accept_envvar_unprivileged"]:
        found.append(
            "container_toolkit_accept_envvar_unprivileged true: any pod whose image or "
            "specification sets NVIDIA_VISIBLE_DEVICES sees every card of its host, slice or none."
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


def _told_reason(step: t.Mapping[str, str]) -> str:
    """The reason, after what we do about somebody else's part in it."""
    stance = step.get("stance", "")
    return f"{stance}: {step['reason']}" if stance else step["reason"]


def plan_lines(probes: Probes) -> list[str]:
    """The plan for people: one line per component that changes, or one that says nothing does."""
    steps = [
        (host, step["component"], step["action"], _told_reason(step))
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
