#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_drain
short_description: Cordon and drain a node, and take that back
version_added: 0.1.0
description:
  - Runs on the controller. Evicts through the API server, so disruption budgets hold; waits until
    the pods are gone. Pods of DaemonSets and static pods stay.
  - What it did stands in the node's annotation C(flexai.io/transaction). A cordon of somebody
    else's is never taken off.
  - A drain that doesn't end within its time is taken back, and the error names each pod and the
    budget that holds it.
options:
  node:
    description: Name of the node.
    type: str
    required: true
  reason:
    description: Why; stands on the node as long as it is cordoned.
    type: str
    default: ""
  pause_labels:
    description:
      - Labels that the node loses for the time, so that DaemonSets which choose by them go too.
    type: list
    elements: str
    default: []
  max_unavailable:
    description: How many nodes may be in this state at once, over all runs; the others wait.
    type: int
    default: 1
  limit_s:
    description: How long the drain may take.
    type: int
    default: 600
  turn_limit_s:
    description: How long to wait for the turn of this node.
    type: int
    default: 3600
  delete_orphans:
    description: Whether pods without a controller are evicted too. B(They are lost by it.)
    type: bool
    default: false
  state:
    description:
      - V(drained) cordons and drains, V(released) takes that back, V(held) leaves the node cordoned
        and notes on it that its change failed, so that no other node is begun.
    type: str
    choices: [drained, released, held]
    default: drained
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows what of the node changes, and the pods that go.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have the node quiet
  flexai.xpu.node_drain:
    kubeconfig: /etc/kubernetes/admin.conf
    node: gpu1
    reason: the running driver is replaced
  delegate_to: localhost
"""

RETURN = r"""
pods:
  description: Pods that a drain takes, or took, away.
  returned: success
  type: list
  elements: str
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import connect
from ..module_utils._drain import Drain, is_cordoned, mark_of, name_of
from ..module_utils._errors import run_module


def _drained(drain: Drain, params: t.Mapping[str, t.Any]) -> None:
    drain.refuse_orphans(params["delete_orphans"])
    labels = params["pause_labels"]
    drain.take_turn(params["max_unavailable"], params["turn_limit_s"], params["reason"], labels)
    drain.drain(params["limit_s"], labels)


def converge(drain: Drain, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    node = drain.node()
    mark = mark_of(node)
    draining = params["state"] == "drained"
    pods = sorted(name_of(pod) for pod in drain.pods()) if draining else []
    if draining:
        changed = bool(pods) or mark is None or bool(mark["held"])
    elif params["state"] == "held":
        changed = mark is not None and not (mark["held"] and mark["reason"] == params["reason"])
    else:
        changed = mark is not None
    if changed and not check:
        if draining:
            _drained(drain, params)
        elif params["state"] == "held":
            drain.hold(params["reason"])
        else:
            drain.release()
    # A cordon that somebody else had put there outlives ours.
    after = "cordoned" if params["state"] != "released" or (mark or {}).get("theirs") else "open"
    before = "cordoned" if is_cordoned(node) else "open"
    return {
        "changed": changed,
        "pods": pods,
        "diff": {
            "before": "".join(f"{line}\n" for line in [before, *pods]),
            "after": f"{after if changed else before}\n",
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "node": {"type": "str", "required": True},
            "reason": {"type": "str", "default": ""},
            "pause_labels": {"type": "list", "elements": "str", "default": []},
            "max_unavailable": {"type": "int", "default": 1},
            "limit_s": {"type": "int", "default": 600},
            "turn_limit_s": {"type": "int", "default": 3600},
            "delete_orphans": {"type": "bool", "default": False},
            "state": {
                "type": "str",
                "choices": ["drained", "released", "held"],
                "default": "drained",
            },
        },
        supports_check_mode=True,
    )

    def body(m: t.Any) -> dict[str, t.Any]:
        cluster = connect(m.params["kubeconfig"])
        drain = Drain(cluster, m.params["node"], time.monotonic, time.sleep)
        return converge(drain, m.params, m.check_mode)

    run_module(module, body)


if __name__ == "__main__":
    main()
