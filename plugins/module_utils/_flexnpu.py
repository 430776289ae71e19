# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""flexnpud's registrations: requests and answers as values, and what to ask for.

A task's ``aicore_alloc`` is its part of the slots (``quota``) of a turn on its NPU.
"""

from __future__ import annotations

import json
import typing as t

from ._errors import XpuError

URL = "http://127.0.0.1:8080"
CONF = "/opt/xpu/flexnpud/flexnpud.conf"
TOKEN = "/etc/flexai/flexnpud.token"
DEFAULT_QUOTA = 10
LIST, REGISTER, UNREGISTER = "/device/flexnpu-info", "/device/register", "/device/unregister"


class Task(t.NamedTuple):
    """One registered task, in the words of the register request."""

    flexnpu_id: str
    npu: int
    aicore_alloc: int
    memory_alloc: int
    chip: int = 0
    entity: str = ""
    priority: int = 0

    def __str__(self) -> str:
        parts = [f"NPU {self.npu} chip {self.chip}", f"aicore_alloc {self.aicore_alloc}"]
        parts += [f"memory_alloc {self.memory_alloc} MB", f"priority {self.priority}"]
        parts += [f"entity {self.entity}"] if self.entity else []
        return ", ".join(parts)


# (method, path, body) → (HTTP status, text)
Send = t.Callable[[str, str, t.Optional[t.Mapping[str, t.Any]]], t.Tuple[int, str]]


def _answer(path: str, status: int, text: str) -> dict[str, t.Any]:
    """The JSON object of a reply; its own words where it says NOK."""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if status == 401 or status == 403:
        raise XpuError(
            f"flexnpud refused {path} for want of its token (HTTP {status}).",
            f"run as root where {TOKEN} is, or give its file in token_file.",
        )
    if not isinstance(said, dict) or said.get("status") not in ("OK", "NOK"):
        raise XpuError(
            f"{path} was answered with HTTP {status} and no status OK or NOK: {text[:120]!r}.",
            "check that flexnpud, and nothing else, listens there (`url`).",
        )
    if said["status"] == "NOK":
        raise XpuError(
            f"flexnpud refused {path}: {said.get('message') or 'it gave no reason'}.",
            "mend what it names; see flexnpud.log.",
        )
    return said


def read_list(text: dict[str, t.Any]) -> list[Task]:
    try:
        return [
            Task(**{name: one[name] for name in Task._fields if name in one})
            for one in text["flexnpus"]
        ]
    except (KeyError, TypeError) as error:
        raise XpuError(
            f"{LIST} lists a task that lacks {error}.",
            "use a flexnpud of this collection's release.",
        ) from error


def quota_of(conf: str | None) -> int:
    """``quota`` of section ``[ticker]`` in the daemon's configuration, else its default."""
    section = ""
    for line in (conf or "").splitlines():
        words = line.split("#")[0].split(";")[0].strip()
        if words.startswith("["):
            section = words.strip("[] ")
        key, equals, value = (part.strip() for part in words.partition("="))
        if section in ("ticker", "") and key == "quota" and equals and value.isdigit():
            return int(value)
    return DEFAULT_QUOTA


def check(task: Task, others: t.Iterable[Task], quota: int) -> None:
    """What the daemon would refuse, told before it is asked; so check mode tells it too."""
    if task.aicore_alloc < 1:
        raise XpuError(f"aicore_alloc is {task.aicore_alloc}.", f"give 1 to {quota} (quota).")
    if not 0 <= task.priority <= 9:
        raise XpuError(f"priority is {task.priority}.", "give 0 (low) to 9 (high).")
    taken = sum(one.aicore_alloc for one in others if (one.npu, one.chip) == (task.npu, task.chip))
    if taken + task.aicore_alloc > quota:
        raise XpuError(
            f"aicore_alloc {task.aicore_alloc} of {task.flexnpu_id} is over what is left on NPU "
            f"{task.npu}: {taken} of {quota} (quota) are taken.",
            f"give at most {quota - taken}, or unregister a task; quota is in {CONF}.",
        )


class Client:
    """The daemon's REST, over *send*."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def tasks(self) -> list[Task]:
        return read_list(_answer(LIST, *self._send("GET", LIST, None)))

    def register(self, task: Task) -> None:
        _answer(REGISTER, *self._send("POST", REGISTER, task._asdict()))

    def unregister(self, flexnpu_id: str) -> None:
        body = {"flexnpu_id": flexnpu_id}
        _answer(UNREGISTER, *self._send("POST", UNREGISTER, body))

    def replace(self, former: Task, task: Task) -> None:
        """Another registration in the place of *former*, which comes back where it is refused."""
        self.unregister(former.flexnpu_id)
        try:
            self.register(task)
        except XpuError:
            self.register(former)
            raise
