#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: helm_chart
short_description: Keep a Helm release equal to its chart, values and live objects
version_added: 0.1.0
description:
  - Runs on the control-plane host with a Helm that lies there as an artefact, and with its
    C(kubectl).
  - Renders the chart, compares it with the release's manifest, and asks the API server whether the
    live objects still are what was rendered. Helm installs or upgrades only when something differs.
  - A release that an interrupted Helm left pending is taken back before it is made anew.
  - A release that we install bears the label C(app.kubernetes.io/part-of=flexai.xpu) on Helm's own
    record (a secret in its namespace), over all upgrades; only such a one is ever uninstalled.
options:
  helm:
    description: Path of the helm program on the host.
    type: path
    required: true
  chart:
    description: Path of the packaged chart on the host. Needed when O(state=present).
    type: path
  release:
    description: Name of the release.
    type: str
    required: true
  namespace:
    description: Namespace of the release; made when it is not there.
    type: str
    default: default
  values:
    description: Values for the chart.
    type: dict
    default: {}
  kubeconfig:
    description: Content of a kubeconfig. It lies in a file for this run only.
    type: str
    required: true
  exclusive:
    description:
      - Cluster-wide objects, as C(kind/name), that nobody else may own. When one of them exists and
        belongs to another release or to none, nothing is changed and the module fails.
    type: list
    elements: str
    default: []
  remove_first:
    description:
      - Objects of the release, as C(kind/name), that are deleted before Helm uninstalls the others,
        as webhook configurations whose server goes with the release. For O(state=absent).
    type: list
    elements: str
    default: []
  timeout_s:
    description: How long Helm waits until the objects are ready.
    type: int
    default: 300
  state:
    description: V(absent) uninstalls the release with everything it made, when we installed it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows the release's manifest beside the new one, and the live objects that differ.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have the device plugin running
  flexai.xpu.helm_chart:
    helm: "{{ helm.path }}"
    chart: "{{ chart.path }}"
    release: gpupool
    values:
      runtimeType: containerd
      osType: debian
    kubeconfig: "{{ lookup('ansible.builtin.file', flexai_kubeconfig) }}"
"""

RETURN = r"""
reason:
  description: Why the release was, or would be, changed; empty when it wasn't.
  returned: success
  type: str
left:
  description: What was not removed since it is not ours, each with the reason.
  returned: success
  type: list
  elements: str
"""

import json
import os
import shutil
import tempfile
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import OWNER as OUR_LABEL
from ..module_utils._cluster import is_ours
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Completed, Host

ASK_LIMIT_S = 120
OWNER = "meta.helm.sh/release-name"
OWNER_NAMESPACE = "meta.helm.sh/release-namespace"


@dataclass(frozen=True)
class Release:
    """What Helm knows of the release; ``status`` is empty where there is none."""

    status: str = ""
    manifest: str = ""

    @property
    def pending(self) -> bool:
        """An interrupted Helm left it so; a half-done uninstallation counts."""
        return self.status.startswith("pending-") or self.status == "uninstalling"

    @property
    def has_past(self) -> bool:
        """Whether there is a former state to go back to, and to inherit the labels of."""
        return self.status not in ("", "pending-install", "uninstalling")


def difference(found: Release, rendered: str, drift: str) -> str:
    """Why Helm has to act; empty when it has not (pure)."""
    if not found.status:
        return "not installed"
    if found.status != "deployed":
        return f"the release is {found.status}"
    if found.manifest.strip() != rendered.strip():
        return "chart or values changed"
    return "live objects were changed" if drift else ""


def foreign(objects: t.Iterable[t.Mapping[str, t.Any]], release: str, namespace: str) -> list[str]:
    """Objects that belong to another release, or to none (pure)."""
    others = []
    for thing in objects:
        notes = thing["metadata"].get("annotations") or {}
        owner = (notes.get(OWNER, ""), notes.get(OWNER_NAMESPACE, ""))
        if owner != (release, namespace):
            whose = f"release {owner[0]} in {owner[1]}" if owner[0] else "no Helm release"
            others.append(f"{thing['kind']} {thing['metadata']['name']} ({whose})")
    return others


class Cluster:
    """Helm and kubectl on the host. All files they need lie in one directory, made for one run."""

    def __init__(self, host: Host, params: t.Mapping[str, t.Any], scratch: str) -> None:
        self._host, self._params = host, params
        self._rendered = f"{scratch}/rendered.yaml"
        self._values = f"{scratch}/values.json"
        self._kubeconfig = f"{scratch}/kubeconfig"
        self._write(self._values, json.dumps(params["values"]))
        self._write(self._kubeconfig, params["kubeconfig"])
        for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
            os.environ[name] = scratch
        if os.path.exists(params["helm"]) and not os.access(params["helm"], os.X_OK):
            os.chmod(params["helm"], 0o755)

    @staticmethod
    def _write(path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8", opener=_private) as stream:
            stream.write(text)

    def _helm(self, *arguments: str, limit_s: float = ASK_LIMIT_S) -> Completed:
        where = ["--namespace", self._params["namespace"], "--kubeconfig", self._kubeconfig]
        return self._host.run([self._params["helm"], *arguments, *where], timeout_s=limit_s)

    def _kubectl(self, *arguments: str) -> Completed:
        argv = ["kubectl", "--kubeconfig", self._kubeconfig, *arguments]
        return self._host.run(argv, timeout_s=ASK_LIMIT_S)

    def _must(self, what: str, done: Completed, remedy: str) -> str:
        if done.rc != 0:
            said = (done.err or done.out).strip()
            raise XpuError(
                f"{what} of release {self._params['release']} gave rc {done.rc}: {said}.", remedy
            )
        return done.out

    def release(self) -> Release:
        done = self._helm("status", self._params["release"], "--output", "json")
        if done.rc != 0 and "not found" in done.err:
            return Release()
        text = self._must("helm status", done, "check the kubeconfig and that the API answers.")
        answer = json.loads(text)
        return Release(answer["info"]["status"], answer.get("manifest") or "")

    def render(self, found: Release) -> str:
        """What the chart says now, with what this cluster can do."""
        options = ["--no-hooks", "--validate", *(["--is-upgrade"] if found.status else [])]
        done = self._helm(
            "template",
            self._params["release"],
            self._params["chart"],
            "--values",
            self._values,
            *options,
        )
        text = self._must("helm template", done, "correct the chart's values.")
        self._write(self._rendered, text)
        return text

    def drift(self) -> str:
        """How the live objects differ from what was rendered, as the API server sees it."""
        # Not --namespace: with it kubectl refuses a chart whose objects lie in another one.
        default = f"--namespace={self._params['namespace']}"
        done = self._kubectl("config", "set-context", "--current", default)
        self._must("kubectl config", done, "name a current-context in the kubeconfig.")
        done = self._kubectl("diff", "--filename", self._rendered)
        if done.rc == 1:
            return done.out
        self._must("kubectl diff", done, "have kubectl and diff on the control-plane host.")
        return ""

    def exclusive(self) -> list[dict[str, t.Any]]:
        wanted = self._params["exclusive"]
        if not wanted:
            return []
        done = self._kubectl("get", *wanted, "--ignore-not-found", "--output", "json")
        text = self._must("kubectl get", done, "have kubectl on the control-plane host.")
        answer = json.loads(text) if text.strip() else {"items": []}
        items: list[dict[str, t.Any]] = answer.get("items", [answer])
        return items

    def clear_pending(self, found: Release) -> None:
        """An interrupted first install has nothing to go back to, a later one has."""
        verb = "rollback" if found.has_past else "uninstall"
        done = self._helm(verb, self._params["release"], "--wait")
        self._must(f"helm {verb}", done, f"look at `helm history {self._params['release']}`.")

    def records(self) -> list[dict[str, t.Any]]:
        """Helm's own records of the release; none where it is not installed."""
        release, namespace = self._params["release"], self._params["namespace"]
        selector = f"owner=helm,name={release}"
        done = self._kubectl("get", "secrets", "-n", namespace, "-l", selector, "--output", "json")
        text = self._must("kubectl get", done, "have kubectl on the control-plane host.")
        items: list[dict[str, t.Any]] = json.loads(text)["items"]
        return items

    def upgrade(self, labels: t.Mapping[str, str]) -> None:
        limit_s = self._params["timeout_s"]
        marks = [f"--labels={key}={value}" for key, value in labels.items()]
        done = self._helm(
            "upgrade",
            "--install",
            "--create-namespace",
            self._params["release"],
            self._params["chart"],
            "--values",
            self._values,
            "--wait",
            "--timeout",
            f"{limit_s}s",
            *marks,
            limit_s=limit_s + ASK_LIMIT_S,
        )
        if done.rc != 0:
            raise XpuError(
                f"helm upgrade of release {self._params['release']} gave rc {done.rc}: "
                f"{(done.err or done.out).strip()}.\n{self._unready()}",
                "look at the pods above with `kubectl describe pod`, mend the cause, run again.",
            )

    def _unready(self) -> str:
        done = self._kubectl(
            "get",
            "pods",
            "--all-namespaces",
            "--field-selector=status.phase!=Running,status.phase!=Succeeded",
        )
        return done.out.strip() or "Every pod runs."

    def uninstall(self) -> None:
        for thing in self._params["remove_first"]:
            done = self._kubectl("delete", thing, "--ignore-not-found")
            self._must(f"kubectl delete {thing}", done, "have kubectl on the control-plane host.")
        # In the foreground a workload is gone only after its pods, whose images go next.
        limit_s = self._params["timeout_s"]
        options = ["--wait", "--cascade", "foreground", "--timeout", f"{limit_s}s"]
        done = self._helm(
            "uninstall", self._params["release"], *options, limit_s=limit_s + ASK_LIMIT_S
        )
        self._must("helm uninstall", done, "look at `helm status` on the control-plane host.")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _refuse_foreign(cluster: Cluster, release: str, namespace: str) -> None:
    others = foreign(cluster.exclusive(), release, namespace)
    if others:
        raise XpuError(
            f"Release {release} would replace what is not its own: {', '.join(others)}. "
            "Nothing was changed.",
            "uninstall the other installation first, or leave this role out and run its own.",
        )


def present(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    found = cluster.release()
    _refuse_foreign(cluster, params["release"], params["namespace"])
    rendered = cluster.render(found)
    drift = cluster.drift() if found.status == "deployed" else ""
    reason = difference(found, rendered, drift)
    if reason and not check:
        if found.pending:
            cluster.clear_pending(found)
        # Helm carries labels over upgrades, so another's release never becomes ours by one.
        cluster.upgrade({} if found.has_past else OUR_LABEL)
    return {
        "changed": bool(reason),
        "reason": reason,
        "left": [],
        "diff": [{"before": found.manifest, "after": rendered}, {"prepared": drift}],
    }


def absent(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    records = cluster.records()
    ours = bool(records) and all(is_ours(record) for record in records)
    if ours and not check:
        _need_on_host([params["helm"]])
        cluster.uninstall()
    where = f"release {params['release']} in {params['namespace']}"
    return {
        "changed": ours,
        "reason": "installed" if ours else "",
        "left": [f"{where}: not installed by flexai.xpu"] if records and not ours else [],
        "diff": {"before": f"{where}\n" if ours else "", "after": ""},
    }


def _need_on_host(paths: t.Iterable[str]) -> None:
    for path in paths:
        if not os.path.exists(path):
            raise XpuError(
                f"{path} is not on the host.", "bring it there with flexai.xpu.artefact first."
            )


def _body(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    needed = [params["helm"], params["chart"]] if params["state"] == "present" else []
    missing = [path for path in needed if not os.path.exists(path)]
    if missing and module.check_mode:
        # The artefacts come to the host in the same run, which check mode only predicts.
        return {"changed": True, "reason": f"{missing[0]} is not on the host yet", "left": []}
    _need_on_host(needed)
    scratch = tempfile.mkdtemp(prefix="flexai-helm-")
    try:
        cluster = Cluster(Host(), params, scratch)
        converge = present if params["state"] == "present" else absent
        return converge(cluster, params, module.check_mode)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "helm": {"type": "path", "required": True},
            "chart": {"type": "path"},
            "release": {"type": "str", "required": True},
            "namespace": {"type": "str", "default": "default"},
            "values": {"type": "dict", "default": {}},
            "kubeconfig": {"type": "str", "required": True, "no_log": True},
            "exclusive": {"type": "list", "elements": "str", "default": []},
            "remove_first": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "int", "default": 300},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("chart",))],
        supports_check_mode=True,
    )
    run_module(module, _body)


if __name__ == "__main__":
    main()
