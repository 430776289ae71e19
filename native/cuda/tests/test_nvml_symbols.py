# SPDX-License-Identifier: Apache-2.0
"""nvml/symbols.def against nvml.h: nothing that shows another tenant may be forgotten in it.

As ``test_symbols.py`` for the driver; the header is the wheel's that ``headers.txt`` pins.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from testbed.recipes import simulators
from xpubuild.cache import Cache
from xpubuild.recipes import cuda
from xpubuild.toolchain import run, zig_cxx

# Words by which a function gives itself away: it shows memory, processes, how busy something is,
# or which cards there are.
TELLING = re.compile(
    r"Memory|MemSize|FbUsage|BAR1|Process|Pids|Sessions|Accounting|Util|Samples|FieldValues|Pstates"
    r"|Gpm|Attributes|Count$|Count_|Counter|HandleBy|ByIndex|GetIndex|^nvmlInit"
)
ROW = re.compile(r"^(HOOK|USE|PASS|FAMILY)\((\w+)(?:, (.*))?\)$", re.MULTILINE)
STRUCTS = {
    "nvmlMemory_t": "used",
    "nvmlMemory_v2_t": "used",
    "nvmlUtilization_t": "memory",
    "nvmlProcessInfo_v1_t": "usedGpuMemory",
    "nvmlProcessInfo_v2_t": "computeInstanceId",
    "nvmlProcessInfo_t": "computeInstanceId",
    "nvmlProcessDetail_v1_t": "usedGpuCcProtectedMemory",
    "nvmlProcessDetailList_t": "procArray",
    "nvmlProcessUtilizationSample_t": "decUtil",
    "nvmlProcessUtilizationInfo_v1_t": "ofaUtil",
    "nvmlProcessesUtilizationInfo_t": "procUtilArray",
    "nvmlSample_t": "sampleValue",
    "nvmlGpuDynamicPstatesInfo_t": "utilization[7].percentage",
}


def rows(text: str) -> list[tuple[str, str, str]]:
    return ROW.findall(text)


def forgotten(functions: set[str], text: str) -> list[str]:
    """Functions that the table must name and does not."""
    names = {name for kind, name, _ in rows(text) if kind != "FAMILY"}
    families = tuple(name for kind, name, _ in rows(text) if kind == "FAMILY")
    return sorted(
        name
        for name in functions
        if TELLING.search(name)
        and name not in names
        and not (families and name.startswith(families))
    )


@pytest.fixture(scope="module")
def functions() -> set[str]:
    header = (simulators.headers(Cache()) / "nvml.h").read_text()
    return set(re.findall(r"\bDECLDIR (nvml\w+)\s*\(", header))


@pytest.fixture(scope="module")
def text() -> str:
    return cuda.LIBRARIES[1].table.read_text()


def test_the_header_is_read_whole(functions: set[str]) -> None:
    assert len(functions) > 350
    assert {"nvmlInit_v2", "nvmlDeviceGetMemoryInfo_v2", "nvmlGpmSampleGet"} <= functions


def test_nothing_that_shows_others_is_forgotten(functions: set[str], text: str) -> None:
    left = forgotten(functions, text)
    assert left == [], (
        f"nvml.h has {', '.join(left)}, which nvml/symbols.def does not name; add a row for each: "
        "HOOK it, or say in PASS why not"
    )


def test_every_row_names_a_function_once_with_its_reason(functions: set[str], text: str) -> None:
    found = rows(text)
    names = [name for kind, name, _ in found if kind != "FAMILY"]
    assert sorted(set(names)) == sorted(names)
    assert set(names) - functions == set(), "a misspelt row names nothing"
    for kind, name, why in found:
        assert kind in ("HOOK", "USE") or re.fullmatch(r'"[^"]{4,}"', why), name
        assert kind != "FAMILY" or any(function.startswith(name) for function in functions), name
    assert len(found) == len(re.findall(r"^\w+\(", text, re.MULTILINE)), "a row that can't be read"


@pytest.mark.parametrize(
    ("row", "left"),
    [
        ("", ["nvmlDeviceGetMemoryInfo_v3"]),
        ("HOOK(nvmlDeviceGetMemoryInfo_v2)", ["nvmlDeviceGetMemoryInfo_v3"]),
        ("HOOK(nvmlDeviceGetMemoryInfo_v3)", []),
        ('FAMILY(nvmlDeviceGetMem, "all of them")', []),
    ],
)
def test_a_new_function_is_noticed(row: str, left: list[str]) -> None:
    assert forgotten({"nvmlDeviceGetMemoryInfo_v3", "nvmlDeviceGetName"}, row) == left


def test_structures_are_the_headers(tmp_path: Path) -> None:
    """Size and the place of the last field of each."""
    headers = simulators.headers(Cache())
    lines = "".join(
        f'  std::printf("{name} %zu %zu\\n", sizeof({name}), offsetof({name}, {last}));\n'
        for name, last in STRUCTS.items()
    )
    for side, include in (("ours", "xpu_cuda/nvml.h"), ("theirs", "nvml.h")):
        (tmp_path / f"{side}.cc").write_text(
            f'#include <cstddef>\n#include <cstdio>\n#include "{include}"\n'
            f"int main() {{\n{lines}}}\n"
        )
        flags: list[str | Path] = [f"-I{cuda.CUDA / 'include'}", "-isystem", headers]
        run([*zig_cxx(), "-std=c++17", *flags, tmp_path / f"{side}.cc", "-o", tmp_path / side])
    assert run([tmp_path / "ours"]) == run([tmp_path / "theirs"])
