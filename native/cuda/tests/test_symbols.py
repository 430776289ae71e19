# SPDX-License-Identifier: Apache-2.0
"""symbols.def against cuda.h: nothing that allocates or launches may be forgotten in it.

The headers are those of the wheels that ``tests/simulators/headers.txt`` (CUDA 12.9) and
``headers-13.txt`` pin; with a newer one this fails until somebody has looked at each function that
came with it.
"""

from __future__ import annotations

import json
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
    r"Alloc|Free|Mem(Create|Release|Map|Unmap|Retain|cpy|set)|Trim|Pool(Create|Destroy|Import|Export)"
    r"|(Get|Set)(Default)?MemPool$|Array(3D)?(Create|Destroy)|GetMapped|Import|Export|OpenMem|CloseMem"
    r"|Prefetch|Discard|AttachMem|Multicast(Create|Bind|Unbind)|LogicalEndpoint(Bind|Destroy)|EnablePeer"
    r"|DestroyExternalMemory|GraphExecDestroy|GreenCtx(Create|Destroy)|FabricCpy"
    r"|Launch|Instantiate|Upload|ExecUpdate|GraphAdd\w*(Kernel|Mem|ChildGraph)\w*Node|GraphAddNode"
    r"|Decompress|BatchMemOp$|Restore$|(Module|Library)(Load|Unload)|LinkCreate|HostRegister"
    r"|Ctx(Create|Destroy|Attach|Detach|SetLimit|Synchronize)|PrimaryCtxRe|(Begin|End)(Re)?[Cc]apture"
    r"|(Stream|Event)Synchronize|GetProcAddress|ExportTable|MemGetInfo|TotalMem"
)
# Names that hold such a word but only ask or describe.
ASKING = re.compile(r"Node[GS]etParams|GetAllocation|ExternalSemaphore|ExportPointer|LoadingMode")


def declared(preprocessed: str) -> dict[str, str]:
    """Functions a driver exports, with their parameters: declared, no inline helper."""
    lines = [line for line in preprocessed.splitlines() if "inline" not in line]
    found = re.findall(r"\bCUresult\b[^();]*?\b(cu[A-Z]\w*)\s*\(([^()]*)\)\s*;", "\n".join(lines))
    return {name: re.sub(r"\s+", " ", parameters).strip() for name, parameters in found}


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


CUDA_13 = Path(__file__).with_name("headers-13.txt")


@dataclass(frozen=True)
class Header:
    """What one cuda.h declares, by the names in a driver's symbol table."""

    parameters: dict[str, str]

    @property
    def functions(self) -> set[str]:
        return set(self.parameters)


def read_header(pins: Path) -> Header:
    header = simulators.headers(Cache(), pins) / "cuda.h"

    def build(target: Path) -> None:
        found: dict[str, str] = {}
        for view in VIEWS:
            found |= declared(run([*zig_cc(), "-E", "-P", "-x", "c", *view, header]))
        (target / "functions.json").write_text(json.dumps(found, indent=1, sort_keys=True))

    inputs = {
        "header": digest_file(header),
        "reader": digest_file(Path(__file__)),
        "zig": zig_version(),
    }
    directory = Cache().get(Recipe("cuda-functions", inputs, build))
    return Header(json.loads((directory / "functions.json").read_text()))


@pytest.fixture(scope="module", params=[simulators.HEADERS, CUDA_13], ids=["12.9", "13"])
def header(request: pytest.FixtureRequest) -> Header:
    return read_header(request.param)


@pytest.fixture(scope="module")
def newest() -> Header:
    return read_header(CUDA_13)


@pytest.fixture(scope="module")
def text() -> str:
    return (CUDA / "symbols.def").read_text()


def hooked(text: str) -> set[str]:
    return set(re.findall(r"^(?:HOOK|USE)\((\w+)", text, re.MULTILINE))


def test_the_header_is_read_whole(header: Header) -> None:
    """A name of each kind, so that an empty list can't pass what follows."""
    kinds = {"cuInit", "cuMemAlloc_v2", "cuMemAlloc", "cuLaunchKernel_ptsz", "cuMemcpy_ptds"}
    assert kinds <= header.functions
    assert "cuGetProcAddress_v2_ptsz" not in header.functions, "an inline helper is no symbol"
    assert header.parameters["cuMemAlloc"] == "CUdeviceptr_v1 *dptr, unsigned int bytesize"


def test_the_headers_are_of_different_age(newest: Header) -> None:
    older = read_header(simulators.HEADERS)
    assert older.functions < newest.functions
    assert "cuMemGetMemPool" in newest.functions - older.functions


def test_nothing_that_allocates_or_launches_is_forgotten(header: Header, text: str) -> None:
    left = forgotten(header.functions, parse(text), hooked(text))
    assert left == [], (
        f"cuda.h has {', '.join(left)}, which symbols.def does not name; add a row for each: "
        "HOOK it, or say in LATER or PASS why not"
    )


def test_every_row_names_a_function_once_with_its_reason(newest: Header, text: str) -> None:
    table = parse(text)
    assert (table.unexplained, table.repeated) == ((), ())
    assert table.names - newest.functions == set(), "a misspelt row names nothing"
    assert all(
        any(name.startswith(family) for name in newest.functions) for family in table.families
    )


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


# What the words of symbols.def's parameters stand for in cuda.h; others are structures by name.
KINDS = {
    "ctx": "CUcontext", "stream": "CUstream", "event": "CUevent", "func": "CUfunction",
    "graph": "CUgraph", "node": "CUgraphNode", "exec": "CUgraphExec", "pool": "CUmemoryPool",
    "array": "CUarray", "mipmap": "CUmipmappedArray", "green": "CUgreenCtx",
    "resources": "CUdevResourceDesc", "phys": "CUmemGenericAllocationHandle",
    "endpoint": "CUlogicalEndpointId", "dev": "CUdevice", "ptr": "CUdeviceptr",
    "ptr32": "CUdeviceptr_v1", "size": "size_t", "u32": "unsigned int", "text": "char",
}  # fmt: skip
U64 = {"unsigned long long", "cuuint64_t"}


def says(word: str, parameter: str, count: int) -> bool:
    """Whether a word of symbols.def can describe this parameter of a function with *count*."""
    shape = re.fullmatch(r"(\w+)(<>|<|>)?(?:\[(\d+)\])?", word)
    if shape is None:
        return False
    kind, direction, times = shape[1], shape[2], shape[3]
    declared_type = re.sub(r"\w+$", "", parameter).replace(" ", "")
    constant, pointers = declared_type.startswith("const"), declared_type.count("*")
    base = re.sub(r"^const |[ *]*\w*$", "", parameter.strip())
    if times is not None and not (direction and 1 <= int(times) <= count):
        return False
    if kind in ("any", "host", "ptr") and base == "void":
        return pointers == (1 if direction is None else 2)
    if (direction is not None) != (pointers == 1) or (constant and direction != "<"):
        return False
    if kind == "u64":
        return base in U64
    if kind == "i32":
        return base == "int" or base not in {*KINDS.values(), *U64}  # else an enumeration
    return KINDS.get(kind, kind) == base


def wrongly_described(text: str, header: Header) -> list[str]:
    """Hooks whose parameters are not the header's, with what is said and what is declared."""
    rows = re.findall(r"^HOOK\((\w+), \w+(?:, \"(.*)\")?\)$", text, re.MULTILINE)
    wrong = []
    for name, words in rows:
        said = words.split()
        declaration = header.parameters.get(name, "not declared")
        parameters = [] if declaration == "void" else declaration.split(",")
        fits = len(said) == len(parameters) and all(
            says(word, parameter, len(parameters))
            for word, parameter in zip(said, parameters, strict=True)
        )
        if not fits:
            wrong.append(f'{name} "{words}": ({declaration})')
    return wrong


def test_every_hook_s_parameters_are_described(newest: Header, text: str) -> None:
    assert len(re.findall(r"^HOOK\(", text, re.MULTILINE)) > 90
    wrong = wrongly_described(text, newest)
    assert wrong == [], "the third column of these rows, or their C declaration, is another"


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ('HOOK(cuMemAlloc_v2, memory, "ptr> size")', True),
        ("HOOK(cuMemAlloc_v2, memory)", False),
        ('HOOK(cuMemAlloc_v2, memory, "ptr size")', False),
        ('HOOK(cuMemAlloc_v2, memory, "ptr> u64")', False),
        ('HOOK(cuMemAlloc_v2, memory, "ptr>")', False),
        ('HOOK(cuMemAlloc_v2, memory, "stream> size")', False),
        ('HOOK(cuMemCreate, vmm, "phys> size CUmemAllocationProp> u64")', False),
        ('HOOK(cuMemMapArrayAsync, vmm, "CUarrayMapInfo<[2] u32 stream")', True),
        ('HOOK(cuMemMapArrayAsync, vmm, "CUarrayMapInfo<[4] u32 stream")', False),
        ('HOOK(cuCtxSynchronize, launch, "")', True),
    ],
)
def test_a_wrong_description_is_noticed(newest: Header, row: str, right: bool) -> None:
    assert (wrongly_described(row, newest) == []) == right
