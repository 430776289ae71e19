# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What action plugins read on the controller: the manifest, the roles' defaults and specs."""

from __future__ import annotations

import inspect
import os
import typing as t
from collections.abc import Mapping

import yaml
from ansible.module_utils.parsing.convert_bool import boolean

from ..module_utils import _container_toolkit as toolkit
from ..module_utils._artefacts import Artefact, candidates, check_digest, from_bundle, parse
from ..module_utils._errors import XpuError
from ..module_utils._host import Host
from ..module_utils._plan import ARTEFACT_OF
from ..module_utils._xpu_runtime import release_name
from . import _lock as locks

ROLES = os.path.normpath(os.path.join(os.path.dirname(__file__), "..", "..", "roles"))
# The roles whose variables say what a node shall be.
NODE_ROLES = (
    "preflight",
    "nvidia_driver",
    "cuda_toolkit",
    "container_engine",
    "container_toolkit",
    "container_runtime",
    "xpu_runtime",
    "xpu_agent",
)

Variables = t.Mapping[str, t.Any]
# Makes, once per host, a function that templates values in one scope.
Templates = t.Callable[[Variables], t.Callable[[t.Any], t.Any]]


def nodes_of_play(variables: Variables) -> list[str]:
    """The hosts that a play is about. The controller may be among them without being a node: it is
    what shows the verdict where every host is lost."""
    nodes = variables["groups"].get("flexai_nodes", ())
    return [
        host for host in variables["ansible_play_hosts_all"] if host != "localhost" or host in nodes
    ]


def absolute(path: str) -> str:
    """A path of the controller, as a site writes it."""
    return os.path.abspath(os.path.expanduser(str(path)))


def load_manifest(path: str) -> tuple[str, list[Artefact]]:
    """(directory of the manifest, its entries)"""
    if not path:
        raise XpuError(
            "flexai_manifest, the artefact manifest on the controller, is not set.",
            "set it in the inventory; `make artefacts` writes one.",
        )
    where = absolute(path)
    try:
        with open(where, encoding="utf-8") as stream:
            data = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise XpuError(
            f"The artefact manifest {where} (flexai_manifest) does not exist.",
            "make it with `make artefacts`, or write it as docs/interfaces.md §2 shows.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise XpuError(
            f"The artefact manifest {where} (flexai_manifest) can't be read: {error}.",
            "name a readable text file.",
        ) from error
    except yaml.YAMLError as error:
        raise XpuError(f"{where} is no YAML: {error}.", "mend it.") from error
    return os.path.dirname(where), parse(data, where)


def lock_path(manifest: str, lock: str) -> str:
    """The site's lock file; without a name of its own it lies beside the manifest."""
    return absolute(lock) if lock else os.path.join(os.path.dirname(absolute(manifest)), "lock.yml")


def load_artefacts(
    manifest: str, source: str = "manifest", lock: str = ""
) -> tuple[str, list[Artefact]]:
    """(directory of the manifest, its entries, those that the lock file knows with its digests)"""
    directory, entries = load_manifest(manifest)
    if source == "bundle":
        return directory, [from_bundle(entry, manifest) for entry in entries]
    where = lock_path(manifest, lock)
    return directory, locks.applied(entries, locks.read(where), where)


def checked_source(directory: str, artefact: Artefact) -> str:
    """Likewise, and the file is the one that the manifest names."""
    path = artefact.source_in(directory)
    found = Host().digest(path)
    if not found and artefact.source == artefact.bundle_path:
        raise XpuError(
            f"Artefact {artefact.name}: {path} is missing from the bundle; wanted is SHA-256 "
            f"{artefact.sha256}.",
            "write the bundle again with flexai.xpu.bundle, and bring it here whole.",
        )
    what = f"Artefact {artefact.name}: {path}"
    check_digest(what, found, artefact.sha256, artefact.pinned_by)
    return path


def role_specs(roles: str = ROLES) -> dict[str, dict[str, t.Any]]:
    """Variable → its option, of the main entry point of every role."""
    options: dict[str, dict[str, t.Any]] = {}
    for role in sorted(os.listdir(roles)):
        path = os.path.join(roles, role, "meta", "argument_specs.yml")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as stream:
                points = yaml.safe_load(stream)["argument_specs"]
            for point in points.values():
                options.update(point.get("options", {}))
    return options


def role_names(roles: str = ROLES) -> list[str]:
    return sorted(name for name in os.listdir(roles) if not name.startswith((".", "_")))


def node_defaults(loader: t.Any, roles: t.Sequence[str] = NODE_ROLES) -> dict[str, t.Any]:
    """The defaults of *roles*, as templates."""
    trusted: dict[str, t.Any] = {}
    if "trusted_as_template" in inspect.signature(loader.load_from_file).parameters:
        trusted["trusted_as_template"] = True  # ansible-core 2.19 and newer
    defaults: dict[str, t.Any] = {}
    for role in roles:
        path = os.path.join(ROLES, role, "defaults", "main.yml")
        defaults.update(loader.load_from_file(path, **trusted) or {})
    return defaults


def node_values(defaults: Variables, host: Variables, templates: Templates) -> dict[str, t.Any]:
    """Every node variable of one host: what the site wrote, else the role's default, templated.

    Most are plain, and templating costs a second run most of its time on the controller.
    """
    scope = {**defaults, **host}
    template = templates(scope)
    return {
        name: template(scope[name]) if _is_template(scope[name]) else scope[name]
        for name in defaults
    }


def _is_template(value: t.Any) -> bool:
    return not isinstance(value, (bool, int)) and "{" in str(value)


def _releases(found: t.Iterable[Artefact]) -> dict[str, str]:
    return {entry.arch: release_name(entry.version, entry.sha256) for entry in found}


def desired_state(values: Variables, artefacts: t.Sequence[Artefact]) -> dict[str, t.Any]:
    """What `node_probe` plans towards, as plain data."""
    versions = {component: str(values[f"{component}_version"] or "") for component in ARTEFACT_OF}
    found = {
        component: candidates(artefacts, name, versions[component])
        for component, name in ARTEFACT_OF.items()
    }
    rpms = candidates(artefacts, toolkit.ARTEFACTS["rpm"], versions[toolkit.COMPONENT])
    return {
        "min_free_mib": int(values["preflight_min_free_mib"]),
        "architectures": {
            **{
                component: [entry.arch for entry in entries] for component, entries in found.items()
            },
            toolkit.ARTEFACTS["rpm"]: [entry.arch for entry in rpms],
        },
        "nvidia_driver": {
            "version": versions["nvidia_driver"],
            "kernel_module_type": str(values["nvidia_driver_kernel_module_type"]),
            "persistenced": boolean(values["nvidia_driver_persistenced"]),
            "allow_downgrade": boolean(values["nvidia_driver_allow_downgrade"]),
            "signing_key": str(values["nvidia_driver_signing_key"]),
            "signing_certificate": str(values["nvidia_driver_signing_certificate"]),
            "method": str(values["nvidia_driver_method"]),
            "packages": [str(name) for name in values["nvidia_driver_packages"]],
            "fabric_packages": [str(name) for name in values["nvidia_driver_fabric_packages"]],
        },
        "cuda_toolkit": {
            "version": versions["cuda_toolkit"],
            "method": str(values["cuda_toolkit_method"]),
        },
        "container_engine": {
            "install": boolean(values["container_engine_install"]),
            "packages": [str(name) for name in values["container_engine_packages"]],
            "since": str(values["container_engine_since"]),
        },
        "container_toolkit": {
            "version": versions["container_toolkit"],
            "accept_envvar_unprivileged": boolean(
                values["container_toolkit_accept_envvar_unprivileged"]
            ),
            "accept_volume_mounts": boolean(values["container_toolkit_accept_volume_mounts"]),
            "mode": str(values["container_toolkit_mode"]),
            "method": str(values["container_toolkit_method"]),
        },
        "container_runtime": {"engine": str(values["container_runtime_engine"])},
        "xpu_runtime": {"releases": _releases(found["xpu_runtime"])},
        "xpu_agent": {
            "state": str(values["xpu_agent_state"]),
            "version": versions["xpu_agent"],
            "releases": _releases(found["xpu_agent"]),
        },
        "images": {entry.image: entry.image_digest for entry in artefacts if entry.kind == "image"},
    }


def ascend_state(values: Variables) -> dict[str, t.Any]:
    """What `ascend_probe` plans towards, as plain data."""
    return {
        "ascend_driver": {
            "driver": str(values["ascend_driver_version"]),
            "firmware": str(values["ascend_driver_firmware_version"]),
            "user": str(values["ascend_driver_user"]),
            "uid": int(values["ascend_driver_uid"]),
            "allow_downgrade": boolean(values["ascend_driver_allow_downgrade"]),
            "chip": str(values["ascend_driver_chip"]),
        },
        "ascend_cann": {
            "version": str(values["ascend_cann_version"]),
            "parts": [str(part) for part in values["ascend_cann_parts"]],
            "chip": str(values["ascend_cann_chip"]),
            "path": str(values["ascend_cann_path"]),
        },
    }


def plain(value: t.Any) -> t.Any:
    """*value* without Ansible's own string and container types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
