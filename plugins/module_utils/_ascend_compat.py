# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Does a CANN run on a host's Ascend driver, with a torch-npu and a vllm-ascend? Versions in, a
verdict with its reason out.

A driver's ``version.info`` lists the CANN lines that it serves (``V100R001C21`` is 8.1.RC1's);
the newest of them is what decides. Sources: version.info and ascend_toolkit_install.info of public
reports, vllm-ascend's installation guide and torch-npu's table of releases.
"""

from __future__ import annotations

import re
import typing as t

from ._errors import XpuError


class Row(t.NamedTuple):
    """One CANN: the first driver whose list has its line, and what is built against it."""

    line: int
    driver: str
    torch_npu: tuple[str, ...]
    vllm_ascend: tuple[str, ...] = ()


MATRIX = {
    "8.0.0": Row(20, "24.1.0", ("2.5.1",)),
    "8.1.RC1": Row(21, "25.0.rc1", ("2.5.1",), ("0.8.5rc1",)),
    "8.2.RC1": Row(22, "25.2.0", ("2.5.1.post1", "2.6.0")),
    "8.3.RC1": Row(23, "25.3.rc1", ("2.7.1",)),
}
# torch-npu 2.5.1 and its neighbours; others are not checked.
PYTHON_SINCE, PYTHON_BEFORE = (3, 9), (3, 12)
_VERSION = re.compile(r"\d+(\.(\d+|[A-Za-z]+\d*))*$")
_LINE = re.compile(r"V\d+R\d+C(\d+)")


class Question(t.NamedTuple):
    """``compatible`` is the driver's own list (``compatible_version`` of its version.info)."""

    driver: str
    cann: str
    compatible: str = ""
    torch_npu: str = ""
    vllm_ascend: str = ""
    python: str = ""


class Answer(t.NamedTuple):
    """``verdict`` is listed (by the driver itself), known (by our table) or fail."""

    verdict: str
    reason: str
    remedy: str = ""

    @property
    def runs(self) -> bool:
        return self.verdict != "fail"


def version_key(version: str) -> tuple[tuple[int, int], ...]:
    """``25.0.rc1.1`` as parts that compare: a candidate (rc1, RC1, T6) comes before a release."""
    parts = []
    for part in version.split("."):
        digits = re.search(r"\d+$", part)
        parts.append((int(part.isdigit()), int(digits.group(0)) if digits else 0))
    return tuple(parts)


def _checked(question: Question) -> Row:
    if not _VERSION.match(question.driver):
        raise XpuError(
            f"driver {question.driver!r} is not a version such as 25.0.rc1.1",
            "give what stands behind Version= in /usr/local/Ascend/driver/version.info",
        )
    row = MATRIX.get(question.cann)
    if row is None:
        raise XpuError(
            f"cann {question.cann!r} is in no row of the table; there are {', '.join(MATRIX)}",
            "name one of these, or leave the check out where you know that it runs",
        )
    return row


def _driver(question: Question, row: Row) -> Answer:
    lines = [int(line) for line in _LINE.findall(question.compatible)]
    needs = f"CANN {question.cann} (line C{row.line})"
    if lines and row.line in lines:
        return Answer("listed", f"driver {question.driver} lists {needs}")
    remedy = f"install driver {row.driver} or newer, or a CANN that this driver serves"
    if lines:
        newest = f"C{max(lines)}"
        reason = f"driver {question.driver} does not list {needs}; the newest it lists is {newest}"
        return Answer("fail", reason, remedy)
    if version_key(question.driver) < version_key(row.driver):
        return Answer(
            "fail", f"{needs} needs driver {row.driver}; {question.driver} is older", remedy
        )
    return Answer(
        "known", f"driver {question.driver} is at least {row.driver}, the first for {needs}"
    )


def _built(what: str, said: str, known: tuple[str, ...], cann: str) -> str:
    """Why *said* is wrong with this CANN; empty where it is right, or nothing was said."""
    if not said or said in known:
        return ""
    there = ", ".join(known) or "none"
    return f"{what} {said} is not built for CANN {cann}; known for it: {there}"


def _python(said: str) -> str:
    numbers = re.match(r"(\d+)\.(\d+)", said)
    if not said:
        return ""
    if numbers is None:
        raise XpuError(f"python {said!r} is not a version such as 3.10", "give major.minor")
    found = (int(numbers.group(1)), int(numbers.group(2)))
    if PYTHON_SINCE <= found < PYTHON_BEFORE:
        return ""
    return f"python {said} is not one that torch-npu is built for: 3.9, 3.10, 3.11"


def answer(question: Question) -> Answer:
    row = _checked(question)
    found = _driver(question, row)
    if not found.runs:
        return found
    wrong = [
        _built("torch-npu", question.torch_npu, row.torch_npu, question.cann),
        _built("vllm-ascend", question.vllm_ascend, row.vllm_ascend, question.cann),
        _python(question.python),
    ]
    wrong = [reason for reason in wrong if reason]
    if wrong:
        return Answer("fail", "; ".join(wrong), "take versions that were built for each other")
    return found
