# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _container_toolkit as toolkit
from ..module_utils._artefacts import Artefact, candidates, require
from ..module_utils._errors import XpuError
from ..module_utils._plan import ARTEFACT_OF, COMPONENTS
from ..module_utils._site import (
    SITE_PREFIX,
    SITE_VARIABLES,
    contradictions,
    dangers,
    duplicates,
    unknown_variables,
)
from ..plugin_utils._controller import (
    checked_source,
    load_artefacts,
    node_defaults,
    node_values,
    nodes_of_play,
    role_names,
    role_specs,
)

# Of a role's option, what the validator of module arguments knows too.
SPEC_KEYS = ("type", "elements", "choices", "options", "required")
CLUSTER_KINDS = ("chart", "binary")
ENVVAR = "container_toolkit_accept_envvar_unprivileged"
# What says where artefacts come from, in the order in which load_artefacts() takes it.
ORIGIN = ("flexai_manifest", "flexai_source", "flexai_lock")
# Its hosts are the cluster's nodes; role node_labels labels them all, whatever --limit says.
CLUSTER_GROUP = "flexai_kubernetes"


Origin = tuple[str, str, str]


class ActionModule(ActionBase):
    """Checks on the controller all that a site wrote; no host is contacted."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hosts = nodes_of_play(variables)
        nodes = list(variables["groups"].get(CLUSTER_GROUP, ()))
        components = self._task.args.get("components") or COMPONENTS
        defaults = node_defaults(self._loader)
        check = _SiteCheck(variables["hostvars"], self._template, defaults, components)
        try:
            problems = check.problems(hosts, nodes)
            if not problems:
                result["artefacts"] = check.artefacts()
        except XpuError as error:
            raise AnsibleActionFail(str(error)) from error
        if problems:
            raise AnsibleActionFail("\n".join(problems))
        if check.warnings:
            result["warnings"] = check.warnings
        result["hosts"] = len(hosts)
        return result

    def _template(self, scope: t.Mapping[str, t.Any]) -> t.Callable[[t.Any], t.Any]:
        templar = self._templar.copy_with_new_env(available_variables=scope)
        return templar.template


def _is_artefact(component: str, values: t.Mapping[str, t.Any]) -> bool:
    """Whether the component comes from the manifest, and not from the hosts' repositories; not
    every site wants a CUDA toolkit."""
    if component == "cuda_toolkit" and not values["cuda_toolkit_version"]:
        return False
    return str(values.get(f"{component}_method", "")) != "packages"


class _SiteCheck:
    def __init__(
        self,
        hostvars: t.Any,
        template: t.Any,
        defaults: dict[str, t.Any],
        components: t.Collection[str],
    ) -> None:
        self._hostvars, self._template, self._defaults = hostvars, template, defaults
        self._components = components
        self._specs = {**SITE_VARIABLES, **role_specs()}
        self._prefixes = (SITE_PREFIX, *(f"{role}_" for role in role_names()))
        self._seen: set[str] = set()
        # By where artefacts come from: whether the cluster's are needed, and (name, version) of the
        # nodes', and of those that are taken where they are there.
        self._with_cluster: dict[Origin, bool] = {}
        # Names of which a host takes one, and their version.
        self._needs: dict[Origin, set[tuple[tuple[str, ...], str]]] = {}
        self._uses: dict[Origin, set[tuple[tuple[str, ...], str]]] = {}
        self.warnings: list[str] = []

    def problems(self, hosts: t.Iterable[str], nodes: t.Iterable[str]) -> list[str]:
        """One line per problem; what many hosts share is said once."""
        found: list[str] = []
        addresses: dict[str, str] = {}
        for host in hosts:
            variables = self._hostvars.raw_get(host)
            addresses[host] = self._identity(host, variables)
            found += [line for line in self._of_host(host, variables) if line not in found]
        names = {host: self._node_name(host, self._hostvars.raw_get(host)) for host in nodes}
        twice = [
            f"Duplicate host: {line}. Remedy: take one of them out of the inventory."
            for line in duplicates(addresses)
        ]
        twice += [
            f"Duplicate node name: {line}. Remedy: give each host its own node's name in "
            f"node_labels_node_name, or take one of them out of {CLUSTER_GROUP}."
            for line in duplicates(names)
        ]
        return found + twice

    def _node_name(self, host: str, variables: t.Mapping[str, t.Any]) -> str:
        """As role node_labels finds it."""
        written = variables.get("node_labels_node_name")
        return str(self._template(variables)(written) if written else "") or host

    def _identity(self, host: str, variables: t.Mapping[str, t.Any]) -> str:
        """What a host really is: its address, and its root where tests share one address."""
        address = self._template(variables)(variables.get("ansible_host") or host)
        port = variables.get("ansible_port")
        root = variables.get("flexai_root") or "/"
        return f"{address}{f':{port}' if port else ''}" + (f" ({root})" if root != "/" else "")

    def _of_host(self, host: str, variables: t.Mapping[str, t.Any]) -> list[str]:
        own = {name: variables[name] for name in variables if name.startswith(self._prefixes)}
        # Hosts of one group mostly share the same texts, and these need one look only.
        key = repr(sorted((name, str(value)) for name, value in own.items()))
        if key in self._seen:
            return []
        self._seen.add(key)
        return self._unknown(own) or self._mistyped(own, variables) or self._odd(host, variables)

    def _unknown(self, own: t.Mapping[str, t.Any]) -> list[str]:
        ignored = own.get("preflight_ignored_variables") or []
        known = {*self._specs, *self._defaults, *ignored}
        return [
            f"Unknown variable {name}. Remedy: "
            + (f"did you mean {near}?" if near else "remove it, or list it in ")
            + ("" if near else "preflight_ignored_variables.")
            for name, near in unknown_variables(own, known, self._prefixes).items()
        ]

    def _mistyped(self, own: t.Mapping[str, t.Any], variables: t.Mapping[str, t.Any]) -> list[str]:
        names = [name for name in own if name in self._specs]
        spec = {
            name: {key: self._specs[name][key] for key in SPEC_KEYS if key in self._specs[name]}
            for name in names
        }
        template = self._template(variables)
        values = {name: template(own[name]) for name in names}
        missing = [
            f"Variable {name} is required. Remedy: set it in the inventory."
            for name, option in SITE_VARIABLES.items()
            if option.get("required") and not values.get(name)
        ]
        errors = ArgumentSpecValidator(spec).validate(values).error_messages
        return missing + [f"{error}. Remedy: correct it in the inventory." for error in errors]

    def _odd(self, host: str, variables: t.Mapping[str, t.Any]) -> list[str]:
        values = node_values(self._defaults, variables, self._template)
        template = self._template(variables)
        for name in ("flexai_profile", "flexai_kubeconfig", *ORIGIN):
            default = SITE_VARIABLES[name].get("default", "")
            values[name] = template(variables.get(name, default))
        manifest, source, lock = (str(values[name]) for name in ORIGIN)
        origin = (manifest, source, lock)
        # A run that is about some components of the nodes leaves the cluster alone.
        whole = set(self._components) == set(COMPONENTS)
        with_cluster = whole and bool(values["flexai_kubeconfig"])
        self._with_cluster[origin] = self._with_cluster.get(origin, False) or with_cluster
        needs = self._needs.setdefault(origin, set())
        uses = self._uses.setdefault(origin, set())
        for component, artefact in ARTEFACT_OF.items():
            # Which of the two a host takes, its package manager says.
            is_toolkit = component == toolkit.COMPONENT
            names = tuple(toolkit.ARTEFACTS.values()) if is_toolkit else (artefact,)
            state = str(values.get(f"{component}_state", "present"))
            if component not in self._components or state == "absent":
                continue
            if _is_artefact(component, values):
                wanted = uses if state == "auto" else needs
                wanted.add((names, str(values[f"{component}_version"] or "")))
        values[ENVVAR] = boolean(values[ENVVAR])
        self.warnings += [line for line in dangers(values) if line not in self.warnings]
        return [f"{host}: {line}" for line in contradictions(values)]

    def artefacts(self) -> int:
        """Check every artefact that this run can need against its digest; how many there were."""
        checked = 0
        for origin, with_cluster in self._with_cluster.items():
            directory, entries = load_artefacts(*origin)
            needed: list[Artefact] = [
                entry
                for entry in entries
                if (entry.kind == "image" and "images" in self._components)
                or (with_cluster and entry.kind in CLUSTER_KINDS)
            ]
            for names, version in sorted(self._needs[origin]):
                found = [each for name in names for each in candidates(entries, name, version)]
                needed += found or require(entries, names[0], version, origin[0])
            for names, version in sorted(self._uses[origin]):
                found = [each for name in names for each in candidates(entries, name, version)]
                needed += [entry for entry in found if entry not in needed]
            for entry in needed:
                # What a URL gives is checked by the host that fetches it.
                if entry.is_pinned and not entry.is_remote:
                    checked_source(directory, entry)
                checked += 1
        return checked
