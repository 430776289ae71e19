# SPDX-License-Identifier: Apache-2.0
"""The library in the driver's place: how it is found, what it leaves alone, what it limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from xpu_slice import GIB, HERE, Slice, stub_driver
from xpubuild.recipes.cuda import CUDA, exported_symbols
from xpubuild.toolchain import run, zig_cc

OUR_FILE = "libcuda_direct.so"
DRIVER_FILE = "libcuda-original.so"
OUT_OF_MEMORY, INVALID_VALUE, NOT_FOUND = 2, 1, 500


def hooks() -> list[str]:
    return exported_symbols((CUDA / "symbols.def").read_text())


def test_every_way_to_a_function_leads_to_the_hook(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    seen = stub.scenario("lookups", *hooks())
    astray = {
        way: file
        for way, file in seen["found"].items()
        if file != (DRIVER_FILE if "Future" in way else OUR_FILE)
    }
    assert astray == {}
    assert seen["per_thread_is_its_own"]
    assert seen["missing"] == NOT_FOUND
    assert seen["future"] == 42, "symbols we do not know come from the driver"


def test_hooks_are_found_when_preloaded(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    before = stub.outside.get("LD_PRELOAD", "")
    preload = f"{before} {stub.libraries / 'libcuda.so.1'}"
    assert stub.scenario("memory", LD_PRELOAD=preload)["over"] == OUT_OF_MEMORY


def test_directly_linked_program_gets_the_hooks(stub: Slice, tmp_path: Path) -> None:
    source, program = tmp_path / "direct.c", tmp_path / "direct"
    source.write_text(
        "#include <stddef.h>\n"
        "int cuInit(unsigned);\nint cuMemAlloc_v2(unsigned long long *, size_t);\n"
        "int cuSomethingOfTheFuture(int);\n"
        "int main(void) {\n"
        "  unsigned long long p;\n"
        "  if (cuInit(0) != 0 || cuSomethingOfTheFuture(1) != 2) return 100;\n"
        "  return cuMemAlloc_v2(&p, (size_t)4 << 30);\n"
        "}\n"
    )
    run([*zig_cc(), source, "-o", program, stub_driver()])
    stub.grant(memory_bytes=3 * GIB)
    done = subprocess.run([program], env=stub.environment)
    assert done.returncode == OUT_OF_MEMORY


def test_memory_is_limited_and_shown_as_the_slice(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    seen = stub.scenario("memory")
    assert seen["shown"] == [3 * GIB, 3 * GIB]
    assert seen["total"] == 3 * GIB
    assert (seen["over"], seen["first"], seen["second"]) == (OUT_OF_MEMORY, 0, OUT_OF_MEMORY)
    assert seen["left"] == GIB
    assert set(seen["answers"].values()) == {OUT_OF_MEMORY}, seen["answers"]
    assert (seen["freed"], seen["twice"], seen["exact"]) == (0, INVALID_VALUE, 0)


def test_a_refused_allocation_leaves_no_charge(stub: Slice) -> None:
    stub.grant(memory_bytes=20 * GIB)  # the stub itself has 8
    process = stub.start([sys.executable, HERE / "tenant.py", "hold", str(9 * GIB)])
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["code"] == OUT_OF_MEMORY
    assert stub.ledger().processes[0].memory_bytes[0] == 0
    process.communicate("end\n")


def test_memory_of_a_destroyed_context_is_given_back(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    seen = stub.scenario("context_end")
    assert (seen["first"], seen["second"]) == (0, 0)


def test_capture_is_neither_delayed_nor_touched(stub: Slice) -> None:
    stub.grant(cores_percent=10, tau_ns=5_000_000)
    process = stub.start([sys.executable, HERE / "tenant.py", "capture"])
    assert process.stdin is not None and process.stdout is not None

    def told() -> tuple[int, int]:
        assert process.stdout is not None and process.stdout.readline() == "{}\n"
        card = stub.ledger().cards[0]
        return card.launches, card.throttled_ns

    before = told()
    assert before[1] > 0, "so far it was held back"
    print(file=process.stdin, flush=True)
    assert told() == before, "1000 captured launches are no work and wait for nothing"
    rest, _ = process.communicate("\n", timeout=60)
    assert json.loads(rest) == {"touched": 0, "ended": 0}


def test_a_forked_child_owns_nothing_of_its_parent(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    seen = stub.scenario("forked")
    assert (seen["first"], seen["over"], seen["fits"]) == (0, OUT_OF_MEMORY, 0)
    assert seen["again"] == 0, "what the dead child held is free again"


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 1000, "percent", "short"])
def test_without_a_usable_grant_nothing_is_limited(
    stub: Slice, content: bytes | str | None
) -> None:
    stub.grant(memory_bytes=GIB, cores_percent=1)
    page = stub.config.read_bytes()
    if content is None:
        stub.config.unlink()
    elif content == "percent":
        stub.config.write_bytes(page[: 64 + 64] + b"\xff" + page[64 + 65 :])
    else:
        stub.config.write_bytes(content if isinstance(content, bytes) else page[:100])
    silent = stub.scenario("memory")
    assert silent["over"] == 0
    assert silent["stderr"] == ""
    said = stub.scenario("memory", XPU_LOG="1")["stderr"]
    assert said.count("\n") == 1 and "no limits in this process" in said


def test_upstream_s_files_grant_where_there_is_no_page(stub: Slice) -> None:
    stub.grant_upstream(memory_mib=3072, cores_percent=20)
    seen = stub.scenario("memory")
    assert (seen["shown"], seen["over"], seen["first"]) == ([3 * GIB, 3 * GIB], OUT_OF_MEMORY, 0)
    page = stub.config.with_name("vgpu.config")
    page.write_text("UsedMem:3072")
    said = stub.scenario("memory", XPU_LOG="1")
    assert said["over"] == 0
    assert f"{page} is not two lines UsedMem" in said["stderr"]


def test_a_card_outside_the_slice_is_not_limited(stub: Slice) -> None:
    stub.grant(memory_bytes=GIB)
    stub.config.write_bytes(stub.config.read_bytes().replace(b"GPU-a0", b"GPU-ff"))
    assert stub.scenario("memory")["over"] == 0


def test_without_a_ledger_limits_hold_for_the_process(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    stub.ledger_file.unlink()
    assert stub.scenario("memory")["over"] == OUT_OF_MEMORY
