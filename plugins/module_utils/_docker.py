# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Docker: our runtimes as keys of daemon.json; all foreign keys keep their meaning.

A kubelet reaches Docker through cri-dockerd, which gives no container a runtime of its own: it
refuses every runtime handler but C(docker), and drops the CDI names of the kubelet. What a pod's
containers go through is therefore Docker's default runtime, and on such a host that is ours for
slices; a container without one passes through it unchanged.
"""

from __future__ import annotations

import json
import typing as t

from . import _owners as owners
from ._decision import BLOCKED, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._errors import XpuError
from ._host import Host

COMPONENT = "container_runtime"
PROGRAMS = ("/usr/sbin/dockerd", "/usr/bin/dockerd")
CRI_DOCKERD = ("/usr/bin/cri-dockerd", "/usr/local/bin/cri-dockerd")
CONFIG_FILE = "/etc/docker/daemon.json"
# The site's text of CONFIG_FILE from before our runtimes; it exists as long as they do.
ORIGINAL_FILE = "/var/lib/flexai-xpu/originals/docker-daemon.json"
RUNTIMES: dict[str, dict[str, t.Any]] = {
    "nvidia": {"path": "/usr/bin/nvidia-container-runtime", "args": []},
    "nvidia-cdi": {"path": "/usr/bin/nvidia-container-runtime.cdi", "args": []},
}
PROGRAMS_OF = {name: str(runtime["path"]) for name, runtime in RUNTIMES.items()}
WANTED = "+".join(RUNTIMES)
# The key of the runtime for containers that name none, and what it says where pods run.
DEFAULT, SLICES, STOCK = "default-runtime", "nvidia-cdi", "runc"


class Facts(t.NamedTuple):
    installed: bool
    config: str | None
    # Whether a kubelet's containers run here, by cri-dockerd.
    serves_kubelet: bool = False


def parse(text: str | None) -> dict[str, t.Any]:
    """daemon.json as a mapping; an empty or missing file is an empty one."""
    if text is None or not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise XpuError(
            f"{CONFIG_FILE} is no JSON ({error}).", "mend it; dockerd itself refuses it too."
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get("runtimes", {}), dict):
        raise XpuError(
            f"{CONFIG_FILE} or its key runtimes holds no JSON object.",
            "mend it; dockerd itself refuses it too.",
        )
    return value


def names_of_ours(text: str | None) -> set[str]:
    """Which of our runtimes stand there, as we define them."""
    runtimes = parse(text).get("runtimes", {})
    return {name for name, ours in RUNTIMES.items() if runtimes.get(name) == ours}


def names_present(text: str | None) -> set[str]:
    """Which of our names stand there, whoever wrote them."""
    return RUNTIMES.keys() & parse(text).get("runtimes", {}).keys()


def default_of(text: str | None) -> str:
    """The runtime of containers that name none, as the file says; runc where it says nothing."""
    return str(parse(text).get(DEFAULT) or STOCK)


def holds_ours(text: str | None) -> bool:
    return bool(names_of_ours(text)) or default_of(text) == SLICES


def theirs(text: str | None) -> dict[str, str]:
    """Runtimes under our names that the site wrote itself, with their programs."""
    runtimes = parse(text).get("runtimes", {})
    return {
        name: str((runtimes[name] or {}).get("path", ""))
        for name in RUNTIMES
        if name in runtimes and runtimes[name] != RUNTIMES[name]
    }


def merged(text: str | None, serves_kubelet: bool = False) -> str:
    """daemon.json with our runtimes; the text itself when they stand there already. What the site
    has under these names stays as it wrote it."""
    config = parse(text)
    wanted = {**config, "runtimes": {**RUNTIMES, **config.get("runtimes", {})}}
    if serves_kubelet:
        wanted[DEFAULT] = SLICES
    return text if text is not None and wanted == config else _print(wanted)


def with_default(text: str | None, runtime: str) -> str:
    return _print({**parse(text), DEFAULT: runtime})


def without(text: str | None, original: str | None) -> str | None:
    """daemon.json without our runtimes; the original's own text where nothing else changed."""
    if not holds_ours(text):
        return text
    config, formerly = parse(text), parse(original)
    before = formerly.get("runtimes", {})
    runtimes = {
        name: runtime
        for name, runtime in config.get("runtimes", {}).items()
        if RUNTIMES.get(name) != runtime or before.get(name) == runtime
    }
    rest = {k: v for k, v in config.items() if k != "runtimes"}
    if rest.get(DEFAULT) == SLICES:
        del rest[DEFAULT]
        rest.update({k: v for k, v in formerly.items() if k == DEFAULT})
    if runtimes or "runtimes" in formerly:
        rest["runtimes"] = runtimes
    if original is not None and formerly == rest:
        return original or None  # kept empty where there was no file
    return _print(rest) if rest else None


def _print(config: t.Mapping[str, t.Any]) -> str:
    return json.dumps(config, indent=4, ensure_ascii=False) + "\n"


def keeps_containers_on_restart(text: str | None) -> bool:
    return bool(parse(text).get("live-restore", False))


def has_cri_dockerd(host: Host) -> bool:
    return any(host.program(program) for program in CRI_DOCKERD)


def observe(host: Host, serves_kubelet: bool = False) -> Facts:
    return Facts(
        installed=any(host.program(program) for program in PROGRAMS),
        config=host.read(CONFIG_FILE),
        serves_kubelet=serves_kubelet,
    )


def _foreign_default(facts: Facts) -> Claim | None:
    """Another default than Docker's own is somebody's decision about every container."""
    default = default_of(facts.config)
    if not facts.serves_kubelet or default in (STOCK, SLICES):
        return None
    reason = (
        f"{DEFAULT} in {CONFIG_FILE} is {default!r}; cri-dockerd gives every container the default "
        f"runtime, and slices need {SLICES!r} there; take the key out, or set it so"
    )
    return Claim(REFUSE, "the site", reason)


def plan(facts: Facts, trace: Claim | None = None) -> Decision:
    if not facts.installed:
        reason = "dockerd is not installed; install Docker first"
        return Decision(COMPONENT, BLOCKED, WANTED, "", reason)
    try:
        present = parse(facts.config).get("runtimes", {})
    except XpuError as error:
        return Decision(COMPONENT, BLOCKED, WANTED, "", str(error))
    found = "+".join(name for name in RUNTIMES if name in present)
    claimed = _foreign_default(facts) or owners.plan_runtimes(
        CONFIG_FILE, theirs(facts.config), PROGRAMS_OF, trace
    )
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, WANTED, found)
    if found != WANTED:
        action = CHANGE if found else INSTALL
        decision = Decision(COMPONENT, action, WANTED, found, f"{CONFIG_FILE} lacks our runtimes")
    elif facts.serves_kubelet and default_of(facts.config) != SLICES:
        reason = f"{DEFAULT} in {CONFIG_FILE} is not {SLICES}, which cri-dockerd needs"
        decision = Decision(COMPONENT, CHANGE, WANTED, found, reason)
    else:
        decision = Decision(COMPONENT, OK, WANTED, found)
    return claimed.on(decision) if claimed else decision
