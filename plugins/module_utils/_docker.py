# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Docker: our runtimes as keys of daemon.json; all foreign keys keep their meaning."""

from __future__ import annotations

import json
import typing as t

from . import _owners as owners
from ._decision import BLOCKED, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._errors import XpuError
from ._host import Host

COMPONENT = "container_runtime"
PROGRAMS = ("/usr/sbin/dockerd", "/usr/bin/dockerd")
CONFIG_FILE = "/etc/docker/daemon.json"
# The site's text of CONFIG_FILE from before our runtimes; it exists as long as they do.
ORIGINAL_FILE = "/var/lib/flexai-xpu/originals/docker-daemon.json"
RUNTIMES: dict[str, dict[str, t.Any]] = {
    "nvidia": {"path": "/usr/bin/nvidia-container-runtime", "args": []},
    "nvidia-cdi": {"path": "/usr/bin/nvidia-container-runtime.cdi", "args": []},
}
PROGRAMS_OF = {name: str(runtime["path"]) for name, runtime in RUNTIMES.items()}
WANTED = "+".join(RUNTIMES)


class Facts(t.NamedTuple):
    installed: bool
    config: str | None


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


def theirs(text: str | None) -> dict[str, str]:
    """Runtimes under our names that the site wrote itself, with their programs."""
    runtimes = parse(text).get("runtimes", {})
    return {
        name: str((runtimes[name] or {}).get("path", ""))
        for name in RUNTIMES
        if name in runtimes and runtimes[name] != RUNTIMES[name]
    }


def merged(text: str | None) -> str:
    """daemon.json with our runtimes; the text itself when they stand there already. What the site
    has under these names stays as it wrote it."""
    config = parse(text)
    runtimes = config.get("runtimes", {})
    if text is not None and RUNTIMES.keys() <= runtimes.keys():
        return text
    return _print({**config, "runtimes": {**RUNTIMES, **runtimes}})


def without(text: str | None, original: str | None) -> str | None:
    """daemon.json without our runtimes; the original's own text where nothing else changed."""
    if not names_of_ours(text):
        return text
    config = parse(text)
    before = parse(original).get("runtimes", {})
    runtimes = {
        name: runtime
        for name, runtime in config.get("runtimes", {}).items()
        if RUNTIMES.get(name) != runtime or before.get(name) == runtime
    }
    rest = {k: v for k, v in config.items() if k != "runtimes"}
    if runtimes or "runtimes" in parse(original):
        rest["runtimes"] = runtimes
    if original is not None and parse(original) == rest:
        return original or None  # kept empty where there was no file
    return _print(rest) if rest else None


def _print(config: t.Mapping[str, t.Any]) -> str:
    return json.dumps(config, indent=4, ensure_ascii=False) + "\n"


def keeps_containers_on_restart(text: str | None) -> bool:
    return bool(parse(text).get("live-restore", False))


def observe(host: Host) -> Facts:
    return Facts(
        installed=any(host.program(program) for program in PROGRAMS),
        config=host.read(CONFIG_FILE),
    )


def plan(facts: Facts, trace: Claim | None = None) -> Decision:
    if not facts.installed:
        reason = "dockerd is not installed; install Docker first"
        return Decision(COMPONENT, BLOCKED, WANTED, "", reason)
    try:
        present = parse(facts.config).get("runtimes", {})
    except XpuError as error:
        return Decision(COMPONENT, BLOCKED, WANTED, "", str(error))
    found = "+".join(name for name in RUNTIMES if name in present)
    claimed = owners.plan_runtimes(CONFIG_FILE, theirs(facts.config), PROGRAMS_OF, trace)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, WANTED, found)
    if found == WANTED:
        decision = Decision(COMPONENT, OK, WANTED, found)
    else:
        action = CHANGE if found else INSTALL
        decision = Decision(COMPONENT, action, WANTED, found, f"{CONFIG_FILE} lacks our runtimes")
    return claimed.on(decision) if claimed else decision
