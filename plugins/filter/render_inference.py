# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter C(flexai.xpu.render_inference); the logic is in module_utils/_inference."""

from __future__ import annotations

DOCUMENTATION = """
name: render_inference
short_description: An inference service as native objects of Kubernetes
version_added: 0.1.0
author: The flexai.xpu contributors (@flexai-xpu)
description:
  - Turns an C(InferenceService) (C(system.hero.ai/v1alpha1)) into StatefulSets, Services and what
    belongs to them, in the order in which to apply them. No controller is needed for them.
  - A group is one leader and its workers, and one instance of the model. C(spec.replicas) counts
    groups, C(spec.servers.worker.replicas) the workers of each.
  - Everything that is wrong is told at once, each with its path, its value, what is allowed and
    what to do. Values that may be secrets are never shown.
  - The same input gives the same bytes. Nothing is asked of any cluster.
  - Keys of C(spec.flexai) are described in the README of role flexai.xpu.inference_service.
positional: _input
options:
  _input:
    description: The C(InferenceService).
    type: dict
    required: true
  facts:
    description:
      - What the cluster has. A key that is not there is not known, and nothing is refused for it.
    type: dict
    default: {}
    suboptions:
      kubernetes_version:
        description: As V(1.31). Before 1.28 each group gets a Service of its own.
        type: str
      kinds:
        description: Kinds that the cluster has, as V(keda.sh/v1alpha1/ScaledObject).
        type: list
        elements: str
      volcano_version:
        description: As V(1.10.2). Before 1.12 there is an explicit PodGroup.
        type: str
      scheduler_name:
        description: The name by which pods choose Volcano.
        type: str
        default: volcano
      queues:
        description: State of each Queue, by name.
        type: dict
      hero_controller:
        description: Whether Hero's own controller reconciles C(InferenceService).
        type: bool
        default: false
      driver_version:
        description: The least driver version of the nodes.
        type: str
      container_toolkit_version:
        description: The least version of NVIDIA's container toolkit on the nodes.
        type: str
      gpu_class:
        description: What the cards are sold as.
        type: str
        choices: [datacenter, consumer]
        default: datacenter
      gpu_memory:
        description: Memory of a whole card, as V(24Gi).
        type: str
      shared_replicas:
        description: Into how many shares NVIDIA's device plugin cuts a card.
        type: int
  live:
    description:
      - Specs of the live StatefulSets, by name. A group that scales keeps its live size, and what
        can't be changed in place is told in C(requires_recreate).
    type: dict
    default: {}
  output:
    description:
      - V(native) renders native objects, V(cr) the C(InferenceService) itself without
        C(spec.flexai). V(auto) takes V(cr) where Hero's controller is, else V(native).
    type: str
    choices: [auto, native, cr]
    default: auto
  scripts:
    description: Files of C(/opt/flexai), C(run.sh) among them; by default the collection's own.
    type: dict
"""

EXAMPLES = """
- name: The objects of a service, as a file to review
  ansible.builtin.copy:
    content: >-
      {{ (lookup('ansible.builtin.file', 'service.yml') | from_yaml
         | flexai.xpu.render_inference(facts={'kubernetes_version': '1.31'})).objects
         | to_nice_yaml }}
    dest: service-objects.yml
    mode: "0644"
"""

RETURN = """
_value:
  description:
    - C(objects) in the order in which to apply them; C(warnings), one text each; C(groups), each
      with C(name), C(index), C(pods), C(workloads), C(leader) and C(selector);
      C(requires_recreate), names of StatefulSets that can't be changed in place; C(layout) and
      C(output) as they were chosen.
  type: dict
"""

import functools
import typing as t
from pathlib import Path

from ansible.errors import AnsibleFilterError

from ..module_utils._inference import facts as cluster_facts
from ..module_utils._inference import problem, render

FILES = Path(__file__).resolve().parents[2] / "roles" / "inference_service" / "files"


def _scripts() -> list[Path]:
    return sorted(path for path in FILES.iterdir() if path.suffix in (".sh", ".py"))


@functools.lru_cache(maxsize=1)
def collection_scripts() -> dict[str, str]:
    """The scripts that the role delivers."""
    return {path.name: path.read_text(encoding="utf-8") for path in _scripts()}


def _refuse(problems: t.Sequence[problem.Problem], warnings: t.Sequence[str] = ()) -> t.NoReturn:
    lines = "".join(f"\n  {one}" for one in problems)
    known = "".join(f"\n  {one}" for one in warnings)
    text = f"render_inference: {len(problems)} to correct:{lines}"
    raise AnsibleFilterError(f"{text}\nTo know:{known}" if known else text)


def render_inference(
    document: t.Any,
    facts: t.Mapping[str, t.Any] | None = None,
    live: render.Live | None = None,
    output: str = "auto",
    scripts: t.Mapping[str, str] | None = None,
) -> dict[str, t.Any]:
    cluster, wrong = cluster_facts.parse(facts)
    if output not in render.OUTPUTS:
        allowed = " or ".join(render.OUTPUTS)
        wrong.append(problem.Problem("output", output, allowed, "correct it"))
    if wrong:
        _refuse(wrong)
    files = collection_scripts() if scripts is None else scripts
    outcome = render.render(document, cluster, files, live, output)
    if outcome.rendered is None:
        _refuse(outcome.problems, outcome.warnings)
    return outcome.rendered.document()


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"render_inference": render_inference}
