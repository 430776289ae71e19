# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What npu-smi prints, as values.

Its tables differ from release to release in widths, in columns and in what stands beside a number.
So nothing is read by its place on a line: a table is known by the words of its header, cells are
what stands between bars, and one whose header is not known is an error, never an empty answer.
"""

from __future__ import annotations

import functools
import re
import typing as t

from ._errors import XpuError
from ._host import Completed, Host

PROGRAM = "/usr/local/bin/npu-smi"
# The real one answers within seconds, also of eight chips; one that hangs does so for ever.
LIMIT_S = 60
# Container id of a vNPU that no container has, by the driver's release.
NO_CONTAINER = ("", "000000000000", "ffffffffffff")

_VERSION = re.compile(r"npu-smi\s+(\S+)\s+Version:")
_PAIR = re.compile(r"(\d+)\s*/\s*(\d+)")
_NUMBER = re.compile(r"\d+")
_FIELD = re.compile(r"^\s*([^:|]+?)\s*:\s*(.*?)\s*$", re.MULTILINE)
_DCMI_CODE = re.compile(r"ret is (-\d+)")


class Process(t.NamedTuple):
    """A process that holds memory of a chip, as the host numbers it."""

    npu: int
    chip: int
    pid: int
    name: str
    memory_mib: int


class Chip(t.NamedTuple):
    """One chip of ``npu-smi info``. Memory is its HBM where it has some."""

    npu: int
    chip: int
    name: str
    health: str
    bus: str
    used_mib: int
    total_mib: int


class Info(t.NamedTuple):
    version: str
    chips: tuple[Chip, ...]
    processes: tuple[Process, ...]


class Mapped(t.NamedTuple):
    """One line of ``npu-smi info -m`` that is a chip for computing."""

    npu: int
    chip: int
    logic: int
    name: str


class Template(t.NamedTuple):
    """A vNPU template; ``memory_gb`` is as the driver counts it."""

    name: str
    aicore: int
    memory_gb: int
    aicpu: int


class Vnpu(t.NamedTuple):
    id: int
    group: int
    container: str
    status: int
    template: str

    @property
    def used(self) -> bool:
        """Whether a container or machine has it; in doubt it has."""
        return self.status != 0 or self.container not in NO_CONTAINER


class Layout(t.NamedTuple):
    """The vNPUs of one chip, and its (free, total) AI cores, memory in GB and AI CPUs."""

    aicore: tuple[int, int]
    memory_gb: tuple[int, int]
    aicpu: tuple[int, int]
    vnpus: tuple[Vnpu, ...]


def unknown(what: str, text: str) -> XpuError:
    """The one error for output that no known release prints."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    seen = lines[0][:120] if lines else "nothing"
    return XpuError(
        f"`npu-smi {what}` printed no table that flexai.xpu knows; it begins with {seen!r}.",
        "check that driver and npu-smi are of one release known to README (22.0 to 26.0); send its "
        "whole output with a report, since nothing was changed.",
    )


T = t.TypeVar("T")


def _table_of(what: str) -> t.Callable[[t.Callable[[str], T]], t.Callable[[str], T]]:
    """A parser whose every stumble is that one error."""

    def decorate(parse: t.Callable[[str], T]) -> t.Callable[[str], T]:
        @functools.wraps(parse)
        def checked(text: str) -> T:
            try:
                return parse(text)
            except (ValueError, IndexError):
                raise unknown(what, text) from None

        return checked

    return decorate


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _rows(text: str) -> t.Iterator[list[str]]:
    """The cells of every line between bars; rules of dashes are left out."""
    for line in text.splitlines():
        if line.lstrip().startswith("|") and not re.fullmatch(r"[|=+\-\s]+", line):
            yield _cells(line)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(text)]


# -- npu-smi info ----------------------------------------------------------------------------


def _chip(first: list[str], second: list[str]) -> Chip:
    """From the two rows of a chip; the last pair of the second one is the memory it computes in."""
    npu, name = first[0].split(maxsplit=1)
    used, total = _PAIR.findall(second[2])[-1]
    chip = _numbers(second[0])[0]
    return Chip(int(npu), chip, name, first[1], second[1].lower(), int(used), int(total))


def _is_process_header(cells: list[str]) -> bool:
    return len(cells) > 2 and cells[1] == "Process id"


@_table_of("info")
def parse_info(text: str) -> Info:
    """``npu-smi info``: chips and processes, of any known release."""
    version = _VERSION.search(text)
    rows = list(_rows(text))
    starts = [at for at, row in enumerate(rows) if row[0].split()[:2] == ["NPU", "Name"]]
    split = [at for at, row in enumerate(rows) if _is_process_header(row)]
    if not version or len(starts) != 1 or len(split) != 1 or "Memory-Usage" not in str(rows):
        raise ValueError
    body = rows[starts[0] + 2 : split[0]]
    if not body or len(body) % 2:
        raise ValueError
    chips = tuple(_chip(*pair) for pair in zip(body[::2], body[1::2]))
    processes = tuple(_process(row) for row in rows[split[0] + 1 :] if len(row) > 1)
    return Info(version.group(1), chips, processes)


def _process(row: list[str]) -> Process:
    npu, chip = row[0].split()
    return Process(int(npu), int(chip), int(row[1]), row[2], int(row[3]))


# -- npu-smi info -m -------------------------------------------------------------------------


@_table_of("info -m")
def parse_map(text: str) -> tuple[Mapped, ...]:
    """``npu-smi info -m``: the chips for computing; controllers (Mcu) have no logic id."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = re.split(r"\s{2,}", lines[0]) if lines else []
    if header[:3] != ["NPU ID", "Chip ID", "Chip Logic ID"] or header[-1] != "Chip Name":
        raise ValueError
    found = []
    for line in lines[1:]:
        words = line.split(maxsplit=len(header) - 1)
        if len(words) != len(header):
            raise ValueError
        if words[2].isdigit():
            npu, chip, logic = (int(word) for word in words[:3])
            found.append(Mapped(npu, chip, logic, words[-1].removeprefix("Ascend").strip()))
    return tuple(found)


# -- vNPUs -----------------------------------------------------------------------------------


@_table_of("info -t template-info")
def parse_templates(text: str) -> tuple[Template, ...]:
    """``npu-smi info -t template-info``: two lines a template, of which the first has a name."""
    rows = [" ".join(cells).split() for cells in _rows(text)]
    header = ["Name", "AICORE", "Memory", "AICPU"]
    if not any(row[:4] == header for row in rows):
        raise ValueError
    found = tuple(
        Template(row[0], int(row[1]), int(row[2]), int(row[3]))
        for row in rows
        if len(row) >= 4 and row[0].startswith("vir") and all(word.isdigit() for word in row[1:4])
    )
    if not found:
        raise ValueError
    return found


@_table_of("info -t info-vnpu")
def parse_layout(text: str) -> Layout:
    """``npu-smi info -t info-vnpu -i n -c n``: what is free, and every vNPU."""
    rows = list(_rows(text))
    names = next((row[0].split() for row in rows if row[0].startswith("AICORE")), [])
    amounts = next((row[0].split() for row in rows if _PAIR.match(row[0])), [])
    total = re.search(r"Total number of vnpu\s*:\s*(\d+)", text)
    if names[:3] != ["AICORE", "Memory", "AICPU"] or len(amounts) != len(names) or not total:
        raise ValueError
    vnpus = tuple(
        Vnpu(int(row[0]), int(row[1]), row[2], int(row[3]), row[4])
        for row in rows
        if len(row) == 5 and row[0].isdigit()
    )
    if len(vnpus) != int(total.group(1)):
        raise ValueError
    pairs = [_numbers(amount) for amount in amounts[:3]]
    aicore, memory, aicpu = ((pair[0], pair[1]) for pair in pairs)
    return Layout(aicore, memory, aicpu, vnpus)


def fields(text: str) -> dict[str, str]:
    """The ``name : value`` lines of every other answer."""
    return {name.lower(): value for name, value in _FIELD.findall(text)}


# -- the program -----------------------------------------------------------------------------


class Smi:
    """npu-smi of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def there(self) -> bool:
        return bool(self._host.program(PROGRAM))

    def _run(self, words: t.Sequence[str]) -> Completed:
        done = self._host.run([PROGRAM, *words], timeout_s=LIMIT_S)
        command = f"`npu-smi {' '.join(words)}`"
        if done.rc == 124:
            raise XpuError(
                f"{command} did not answer within {LIMIT_S} s.",
                "a chip hangs or is being reset: look at `dmesg` for davinci, reset the chip "
                "(`npu-smi set -t reset -i N -c 0`) or reboot, and run this again.",
            )
        code = _DCMI_CODE.search(done.out + done.err)
        if "initialize" in done.out and code:
            raise XpuError(
                f"{command}: DCMI can't be initialised ({code.group(1)}).",
                "the driver is not loaded, or its firmware is missing, or another program holds "
                "the chips: reboot after an installation, and see `dmesg`.",
            )
        return done

    def ask(self, *words: str) -> str:
        """The output of a question."""
        done = self._run(words)
        if done.rc != 0:
            said = (done.out.strip() or done.err.strip())[:300]
            raise XpuError(
                f"`npu-smi {' '.join(words)}` ended with rc {done.rc}: {said}.",
                "check that the driver is whole, then run this again.",
            )
        return done.out

    def order(self, *words: str) -> None:
        """A ``set``; its answer has a status of its own beside the exit code."""
        done = self._run(("set", *words))
        answer = fields(done.out)
        if done.rc != 0 or answer.get("status") != "OK":
            said = answer.get("message") or (done.out.strip() or done.err.strip())[:300]
            raise XpuError(
                f"`npu-smi set {' '.join(words)}` was refused: {said}.",
                "mend what it names; what was done before it stays, and a second run goes on.",
            )

    def info(self) -> Info:
        return parse_info(self.ask("info"))

    def chips(self) -> tuple[Mapped, ...]:
        return parse_map(self.ask("info", "-m"))

    def templates(self, npu: int) -> tuple[Template, ...]:
        return parse_templates(self.ask("info", "-t", "template-info", "-i", str(npu)))

    def layout(self, npu: int, chip: int) -> Layout:
        return parse_layout(self.ask("info", "-t", "info-vnpu", "-i", str(npu), "-c", str(chip)))
