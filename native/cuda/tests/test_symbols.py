# SPDX-License-Identifier: Apache-2.0
"""symbols.def against cuda.h: nothing that allocates or launches may be forgotten in it.

The header is the wheel's that ``tests/simulators/headers.txt`` pins; with a newer one this fails
until somebody has looked at each function that came with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from testbed.recipes import simulators
from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.recipes.cuda import CUDA
from xpubuild.toolchain import run, zig_cc, zig_version

# The header renames functions by macros: the newest versions, the per-thread ones, the old ones.
VIEWS = ((), ("-DCUDA_API_PER_THREAD_DEFAULT_STREAM",), ("-D__CUDA_API_VERSION_INTERNAL",))
# Words by which a function gives itself away: it takes or gives back memory of the card, makes it
# work, ends a context, or leads to a function that does.
TELLING = re.compile(
    r"Alloc|Free|Mem(Create|Release|Map|Unmap|Retain|cpy|set)|Trim|Pool(Create|Destroy|Import)"
    r"|Array(3D)?(Create|Destroy)|GetMapped|Import|OpenMem|Prefetch|AttachMem|Multicast(Create|Bind)"
    r"|Launch|Instantiate|Upload|ExecUpdate|GraphAdd\w*(Kernel|Mem|ChildGraph)\w*Node|GraphAddNode"
    r"|Decompress|BatchMemOp$|Restore$|ModuleLoad|LibraryLoad|LinkCreate|HostRegister"
    r"|Ctx(Create|Destroy|Detach|SetLimit|Synchronize)|PrimaryCtxRe|(Begin|End)Capture"
    r"|(Stream|Event)Synchronize|GetProcAddress|ExportTable|MemGetInfo|TotalMem"
)
# Names that hold such a word but only ask or describe.
ASKING = re.compile(r"Node[GS]etParams|GetAllocation|ExternalSemaphore")


def declared(preprocessed: str) -> set[str]:
    """Functions a driver exports: declared, and not an inline helper of the header."""
    lines = [line for line in preprocessed.splitlines() if "inline" not in line]
    return set(re.findall(r"\bCUresult\b[^();]*?\b(cu[A-Z]\w*)\s*\(", "\n".join(lines)))


@dataclass(frozen=True)
class Table:
    """What symbols.def says."""

    names: frozenset[str]
    families: tuple[str, ...]
    unexplained: tuple[str, ...]  # rows without the reason they must have
    repeated: tuple[str, ...]


def parse(text: str) -> Table:
    rows = re.findall(r"^(HOOK|USE|LATER|PASS|FAMILY)\((\w+)(?:, (.*))?\)$", text, re.MULTILINE)
    names = [name for kind, name, _ in rows if kind != "FAMILY"]
    return Table(
        frozenset(names),
        tuple(name for kind, name, _ in rows if kind == "FAMILY"),
        tuple(
            name
            for kind, name, why in rows
            if kind in ("LATER", "PASS", "FAMILY") and not re.fullmatch(r'"[^"]{4,}"', why)
        ),
        tuple(name for name in set(names) if names.count(name) > 1),
    )


def plain(name: str) -> str:
    """A per-thread variant is the same function on another default stream."""
    return re.sub(r"_pt[sd][sz]$", "", name)


def is_telling(name: str) -> bool:
    bare = re.sub(r"_v\d+$", "", plain(name))
    return TELLING.search(bare) is not None and ASKING.search(bare) is None


def forgotten(functions: set[str], table: Table, hooks: set[str]) -> list[str]:
    """Functions that symbols.def must name and does not."""
    passed = table.names - hooks
    return sorted(
        name
        for name in functions
        if is_telling(name)
        and name not in table.names
        and plain(name) not in passed
        and not name.startswith(table.families)
    )


@pytest.fixture(scope="module")
def functions() -> set[str]:
    """Every function that cuda.h declares, by the names in a driver's symbol table."""
    header = simulators.headers(Cache()) / "cuda.h"

    def build(target: Path) -> None:
        found: set[str] = set()
        for view in VIEWS:
            found |= declared(run([*zig_cc(), "-E", "-P", "-x", "c", *view, header]))
        (target / "names").write_text("".join(f"{name}\n" for name in sorted(found)))

    inputs = {
        "header": digest_file(header),
        "reader": digest_file(Path(__file__)),
        "zig": zig_version(),
    }
    return set((Cache().get(Recipe("cuda-names", inputs, build)) / "names").read_text().split())


@pytest.fixture(scope="module")
def text() -> str:
    return (CUDA / "symbols.def").read_text()


def hooked(text: str) -> set[str]:
    return set(re.findall(r"^(?:HOOK|USE)\((\w+)", text, re.MULTILINE))


def test_the_header_is_read_whole(functions: set[str]) -> None:
    """A name of each kind, so that an empty list can't pass what follows."""
    kinds = {"cuInit", "cuMemAlloc_v2", "cuMemAlloc", "cuLaunchKernel_ptsz", "cuMemcpy_ptds"}
    assert kinds <= functions
    assert "cuGetProcAddress_v2_ptsz" not in functions, "an inline helper is no driver's symbol"


def test_nothing_that_allocates_or_launches_is_forgotten(functions: set[str], text: str) -> None:
    left = forgotten(functions, parse(text), hooked(text))
    assert left == [], (
        f"cuda.h has {', '.join(left)}, which symbols.def does not name; add a row for each: "
        "HOOK it, or say in LATER or PASS why not"
    )


def test_every_row_names_a_function_once_with_its_reason(functions: set[str], text: str) -> None:
    table = parse(text)
    assert (table.unexplained, table.repeated) == ((), ())
    assert table.names - functions == set(), "a misspelt row names nothing"
    assert all(any(name.startswith(family) for name in functions) for family in table.families)


@pytest.mark.parametrize(
    ("row", "still_forgotten"),
    [
        ("", ["cuMemAllocNew", "cuMemAllocNew_ptsz", "cuMemAllocNew_v2"]),
        ('LATER(cuMemAllocNew, "not yet")', ["cuMemAllocNew_v2"]),
        ("HOOK(cuMemAllocNew, memory)", ["cuMemAllocNew_ptsz", "cuMemAllocNew_v2"]),
        ('FAMILY(cuMemAlloc, "all of them")', []),
    ],
)
def test_a_new_function_is_noticed(row: str, still_forgotten: list[str]) -> None:
    new = {"cuMemAllocNew", "cuMemAllocNew_ptsz", "cuMemAllocNew_v2", "cuDeviceGetName"}
    assert forgotten(new, parse(row), hooked(row)) == still_forgotten
