# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: docker_runtime
short_description: Put the runtimes for cards and slices into Docker's daemon.json
version_added: 0.1.0
description:
  - Sets the keys C(runtimes.nvidia) and C(runtimes.nvidia-cdi); every other key keeps its meaning,
    and the former text is kept under C(/var/lib/flexai-xpu/originals) as long as ours are there.
  - dockerd is told to reload, which leaves containers alone. It is restarted only when that does
    not bring the runtimes and C(live-restore) keeps containers running, or none runs. When it does
    not come back, its former file is put back, it is started with that, and the error says so.
options:
  state:
    description: V(absent) takes our keys out again, and the kept text away.
    type: str
    choices: [present, absent]
    default: present
  serves_kubelet:
    description:
      - Whether the host's pods are Docker's, by cri-dockerd. It gives no container a runtime of its
        own, so C(default-runtime) becomes C(nvidia-cdi) too; another one of the site is refused.
    type: bool
    default: false
  engine_expected:
    description:
      - Whether the engine is about to be installed, so that its absence is no error in check mode;
        what will be configured can't be predicted then.
    type: bool
    default: false
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Give Docker its runtimes for slices
  flexai.xpu.docker_runtime:
"""

RETURN = r"""
restarted:
  description: Whether dockerd was restarted, not only reloaded.
  returned: success
  type: bool
"""

import json
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _docker as docker
from ..module_utils import _service as service
from ..module_utils._decision import BLOCKED
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host
from ..module_utils._texts import Texts, read, write

UNIT = "docker.service"
ANSWER_LIMIT_S = 20.0


def _in_force(host: Host) -> tuple[set[str], str]:
    """(runtimes, the default one) of the running dockerd"""
    question = '{"names": {{json .Runtimes}}, "default": {{json .DefaultRuntime}}}'
    done = host.run(["docker", "info", "--format", question], timeout_s=20)
    try:
        said = json.loads(done.out)
        return set(said["names"]), str(said["default"])
    except (ValueError, TypeError, KeyError):
        return set(), ""


def _has(host: Host, text: str | None) -> bool:
    """Whether dockerd, within its time, has of our runtimes exactly those of its file, and the
    default one where the file names it; else a flag of dockerd's may."""
    wanted, default = docker.names_present(text), docker.parse(text).get(docker.DEFAULT)
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while True:
        names, now = _in_force(host)
        if names & set(docker.RUNTIMES) == wanted and default in (None, now):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def apply(host: Host, texts: Texts, former: Texts) -> bool:
    """Bring the new file into force, or the former one back; whether that took a restart."""
    if not host.is_real:
        return False
    text = texts[docker.CONFIG_FILE]
    wanted = docker.names_present(text)
    may_restart = docker.keeps_containers_on_restart(text) or not _containers(host)
    took, restarted = _bring(host, text, may_restart)
    if took:
        return restarted
    words = service.last_words(host, UNIT)
    write(host, former)
    runs = _take_back(host, may_restart)
    raise XpuError(
        f"dockerd did not {'take' if wanted else 'drop'} the runtimes "
        f"{', '.join(docker.RUNTIMES)}; {docker.CONFIG_FILE} has its former text again, and "
        f"dockerd {'runs' if runs else 'does not run'} with it. It said: {words}.",
        f"mend what it names (`journalctl -u {UNIT}` has more), then run again; where containers "
        "run, set live-restore or stop them, so that dockerd may be restarted.",
    )


def _bring(host: Host, text: str | None, may_restart: bool) -> tuple[bool, bool]:
    """(whether dockerd took the file, whether it was restarted for that)"""
    wanted = docker.names_present(text)
    # A reload leaves containers alone. It adds runtimes, but drops none.
    if wanted and service.reload(host, UNIT) and _has(host, text):
        return True, False
    if may_restart:
        return service.restart(host, UNIT) and _has(host, text), True
    # What it can't drop now is two names without programs, until its next start.
    return not wanted and _forget_default(host, text) and service.reload(host, UNIT), False


def _forget_default(host: Host, text: str | None) -> bool:
    """Name the running dockerd another default: one that its file just leaves out it would keep,
    and then start no container once the program is gone."""
    if _in_force(host)[1] != docker.SLICES or docker.default_of(text) == docker.SLICES:
        return True
    default = docker.default_of(text)
    write(host, {docker.CONFIG_FILE: docker.with_default(text, default)})
    took = service.reload(host, UNIT)
    write(host, {docker.CONFIG_FILE: text})
    return took and _in_force(host)[1] == default


def _containers(host: Host) -> str:
    return host.run(["docker", "ps", "-q"]).out.strip()


def _take_back(host: Host, may_restart: bool) -> bool:
    """Let dockerd read its former file; whether it runs."""
    took = service.restart(host, UNIT) if may_restart else service.reload(host, UNIT)
    return took and host.run(["docker", "info"], timeout_s=20).rc == 0


def _texts(host: Host, facts: docker.Facts, present: bool) -> Texts:
    if not present:
        original = host.read(docker.ORIGINAL_FILE)
        # Without it nothing there is ours: a site may have written the same.
        text = facts.config if original is None else docker.without(facts.config, original)
        return {docker.CONFIG_FILE: text, docker.ORIGINAL_FILE: None}
    decision = docker.plan(facts)
    if decision.action == BLOCKED:
        raise XpuError(f"Docker can't be configured: {decision.reason}.", "see above.")
    text = docker.merged(facts.config, facts.serves_kubelet)
    texts: Texts = {docker.CONFIG_FILE: text}
    changing = texts[docker.CONFIG_FILE] != facts.config
    if changing and (
        host.read(docker.ORIGINAL_FILE) is None or not docker.holds_ours(facts.config)
    ):
        # What holds none of ours is the site's own text, whatever was kept before; kept first, so
        # that it is there when ours are.
        return {docker.ORIGINAL_FILE: facts.config or "", **texts}
    return texts


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    facts = docker.observe(host, params.get("serves_kubelet", False))
    if check and params.get("engine_expected") and not facts.installed:
        return {"changed": True, "restarted": False}
    texts = _texts(host, facts, params["state"] == "present")
    former: Texts = read(host, texts)
    differing = [path for path, text in texts.items() if former[path] != text]
    restarted = False
    if differing and not check:
        write(host, texts)
        # The kept original is ours alone: dockerd doesn't know it.
        restarted = docker.CONFIG_FILE in differing and apply(host, texts, former)
    return {
        "changed": bool(differing),
        "restarted": restarted,
        "diff": {
            "before_header": docker.CONFIG_FILE,
            "after_header": docker.CONFIG_FILE,
            "before": facts.config or "",
            "after": texts[docker.CONFIG_FILE] or "",
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "serves_kubelet": {"type": "bool", "default": False},
            "engine_expected": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
