# SPDX-License-Identifier: Apache-2.0
"""The shipped libraries in a container: what a tenant sees, every way in, and ways around.

What a way around gets is asserted too, beside what sees it from outside: a limit in user space
that is said to hold everywhere would be a lie (README, "Ways around").
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import xpu_container
import xpu_pages
from simulators import simnode
from xpu_container import Container
from xpu_slice import GIB, HERE, slice_of
from xpubuild.recipes.cuda import LIBRARIES, exported_symbols
from xpubuild.toolchain import REPOSITORY, run, zig_cc

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")
SPIN = REPOSITORY / "tests" / "simulators" / "kernels" / "spin.ptx"
OUT_OF_MEMORY = 2
TOLERANCE_POINTS = 2
SHORT_POINTS = 6  # over 1/6 s: credit and up to four stretches that are settled late
LIMITS = {"cores_percent": 20, "memory_bytes": 3 * GIB, "tau_ns": 20_000_000}
# 4 GiB of a slice of 3; prints CUDA's answer.
FOUR = (
    "import ctypes, sys, tenant as t; name = sys.argv[1]; mode = int(sys.argv[2]); "
    "l = ctypes.CDLL(name, mode); assert l.cuInit(0) == 0; c = ctypes.c_void_p(); "
    "assert l.cuCtxCreate_v2(ctypes.byref(c), 0, 0) == 0; print(t.allocate(l, 4 << 30)[0])"
)
DIRECT = """
#include <stddef.h>
int cuInit(unsigned);
int cuCtxCreate_v2(void **, unsigned, int);
int cuMemAlloc_v2(unsigned long long *, size_t);
int main(void) {
  unsigned long long p;
  void *context;
  if (cuInit(0) != 0 || cuCtxCreate_v2(&context, 0, 0) != 0) return 100;
  return cuMemAlloc_v2(&p, (size_t)4 << 30);
}
"""
STUB = "int cuInit, cuCtxCreate_v2, cuMemAlloc_v2;\n"


@pytest.fixture
def limited(tmp_path: Path, node: simnode.Node) -> Container:
    return xpu_container.make(tmp_path / "container", node, LIMITS)


@pytest.fixture
def neighbour(tmp_path: Path, node: simnode.Node) -> Iterator[Any]:
    """Somebody else on the card, who holds 7 GiB."""
    other = slice_of(node, tmp_path / "neighbour")
    other.grant(memory_bytes=8 * GIB)
    process = other.start([sys.executable, HERE / "tenant.py", "hold", str(7 * GIB)])
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    process.communicate("end\n")


def test_every_api_shows_20_percent_and_3_gib(limited: Container, neighbour: Any) -> None:
    done = limited.run(sys.executable, HERE / "everything.py", SPIN)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    ours, worker = seen["pids"]["self"], seen["pids"]["worker"]
    assert ours < 100, "pids are the container's"
    assert (seen["cuMemGetInfo"], seen["cuDeviceTotalMem"]) == ([3 * GIB, 3 * GIB], 3 * GIB)
    assert seen["cuMemGetInfo after"] == [2 * GIB, 3 * GIB]
    assert (seen["over"], seen["held"]) == (OUT_OF_MEMORY, 0)
    nvml = seen["nvml"]
    assert (nvml["count"], nvml["uuid"]) == (1, limited.node.uuids[0])
    assert nvml["v1"] == [3 * GIB, 2 * GIB, GIB]
    assert nvml["v2"] == [3 * GIB, 2 * GIB, GIB, 0]
    for name in ("Compute", "Compute_v2", "Compute_v3"):
        assert sorted(nvml["lists"][name]) == sorted([[ours, GIB], [worker, 0]]), name
    percents = [sum(sample[1] for sample in one["samples"]) for one in seen["windows"]]
    assert all([pid for pid, _ in one["samples"]] == [worker] for one in seen["windows"])
    assert max(percents) >= 20 - TOLERANCE_POINTS, percents
    assert max(*percents, *(one["gpu"] for one in seen["windows"])) <= 20 + TOLERANCE_POINTS
    total, used, free, busy = seen["smi query"].strip().split(", ")
    assert (total, used, free) == ("3072 MiB", "1024 MiB", "2048 MiB")
    assert int(busy.split()[0]) <= 20 + SHORT_POINTS
    assert "1024MiB / 3072MiB" in seen["smi"]
    listed = [line.split()[2] for line in seen["smi"].splitlines() if "  C   " in line]
    assert sorted(map(int, listed)) == sorted([ours, worker])
    (device,) = seen["monitor"]["vxpus"]
    assert (device["core_quota"], device["memory_quota"]) == (20, 3 * GIB)
    assert device["memory"] == GIB and device["core"] <= 20 + TOLERANCE_POINTS
    assert {process["pid"] for process in device["processes"]} == {ours, worker}


def four_gib(
    within: Container,
    change: Mapping[str, str] | None = None,
    name: str = "libcuda.so.1",
    mode: int = os.RTLD_LOCAL,
) -> int:
    return int(within.python(FOUR, name, mode, **(change or {})))


@pytest.mark.parametrize("mode", [os.RTLD_LOCAL, os.RTLD_GLOBAL, os.RTLD_GLOBAL | os.RTLD_LAZY])
@pytest.mark.parametrize("name", ["libcuda.so.1", "libcuda.so"])
def test_opened_by_name(limited: Container, name: str, mode: int) -> None:
    assert four_gib(limited, None, name, mode) == OUT_OF_MEMORY


@pytest.mark.parametrize("soname", ["libcuda.so.1", None])
def test_linked_directly(limited: Container, tmp_path: Path, soname: str | None) -> None:
    """Linked against a library without SONAME the program asks for libcuda.so."""
    source, stub, library = (tmp_path / name for name in ("direct.c", "stub.c", "libcuda.so"))
    source.write_text(DIRECT)
    stub.write_text(STUB)
    named = [f"-Wl,-soname,{soname}"] if soname else []
    run([*zig_cc(), "-shared", "-fPIC", *named, stub, "-o", library], cwd=tmp_path)
    run([*zig_cc(), source, "-L.", "-lcuda", "-o", tmp_path / "direct"], cwd=tmp_path)
    assert limited.run(tmp_path / "direct").returncode == OUT_OF_MEMORY


@pytest.mark.parametrize(
    "change",
    [
        {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/usr/local/cuda/lib64"},
        {"LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu"},
        {"XPU_CONFIG_PAGE": "/dev/null", "XPU_LEDGER_PAGE": "/dev/null"},
        {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "void"},
        {"LD_BIND_NOW": "1"},
    ],
    ids=lambda change: next(iter(change)) + "=" + next(iter(change.values())),
)
def test_a_pod_s_variables_change_nothing(limited: Container, change: dict[str, str]) -> None:
    assert four_gib(limited, change) == OUT_OF_MEMORY


def test_another_preload_changes_nothing(limited: Container, tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int cuSomethingElse(void) { return 0; }\n")
    run([*zig_cc(), "-shared", "-fPIC", source, "-o", library])
    assert four_gib(limited, {"LD_PRELOAD": str(library)}) == OUT_OF_MEMORY


def test_an_empty_environment_and_exec_change_nothing(limited: Container) -> None:
    """What a program is started with can be dropped; what lies in the driver's place can't."""
    kept = [
        f"{name}={value}"
        for name, value in limited.environment().items()
        if name.startswith(("SIMGPU_", "PYTHONPATH"))
    ]
    words = ["env", "-i", *kept, sys.executable, "-c", FOUR, "libcuda.so.1", "0"]
    assert limited.python(f"import os; os.execvp('env', {words!r})") == OUT_OF_MEMORY


def test_the_tenant_can_change_neither_grant_nor_libraries(limited: Container) -> None:
    attempt = (
        "import json, sys\n"
        "def attempt(path):\n"
        "    try:\n"
        "        open(path, 'r+b').write(b'x')\n"
        "    except OSError as error:\n"
        "        return error.errno\n"
        "    return 0\n"
        "print(json.dumps([attempt(path) for path in sys.argv[1:]]))\n"
    )
    read_only = 30
    paths = ["/etc/xpu/config.page", "/opt/xpu/lib/libcuda-original.so", "/opt/xpu/bin/gpu-monitor"]
    assert limited.python(attempt, *paths) == [read_only] * 3


LOOKUPS = """
import ctypes, json, os, sys

class Info(ctypes.Structure):
    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p),
                ("name", ctypes.c_char_p), ("address", ctypes.c_void_p))

def named(address):
    info = Info()
    if not address or not ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info)):
        return None
    return [os.path.basename(os.path.realpath(os.fsdecode(info.file))), info.name.decode()]

library = ctypes.CDLL("libcuda.so.1")
assert library.cuInit(0) == 0
rows = {}
for name in json.loads(sys.argv[1]):
    for version in (0, 2000, 3020, 4000, 7000, 10000, 11030, 11040, 12000, 12090, 13000, 99999):
        for flags in (0, 1, 2, 3, 8):
            ask = (name.encode(), version, flags)
            found, status = ctypes.c_void_p(), ctypes.c_int(-1)
            code = library.cuGetProcAddress(ask[0], ctypes.byref(found), version,
                                            ctypes.c_uint64(flags))
            rows[f"v1 {name} {version} {flags}"] = [code, named(found.value)]
            found = ctypes.c_void_p()
            code = library.cuGetProcAddress_v2(ask[0], ctypes.byref(found), version,
                                               ctypes.c_uint64(flags), ctypes.byref(status))
            rows[f"v2 {name} {version} {flags}"] = [code, named(found.value), status.value]
print(json.dumps(rows))
"""


def test_cu_get_proc_address_is_the_driver_s_choice_and_our_function(
    limited: Container, node: simnode.Node
) -> None:
    """Every hook's plain name, every version and flag: the driver's code, status and choice."""
    hooks = set(exported_symbols(LIBRARIES[0].table.read_text()))
    plain = sorted({name.split("_")[0] for name in hooks} | {"cuGetExportTable", "cuNoSuchThing"})
    bare = json.loads(node.run(sys.executable, "-c", LOOKUPS, json.dumps(plain)))
    ours = limited.python(LOOKUPS, json.dumps(plain))
    assert len(bare) == len(plain) * 12 * 5 * 2
    met = set()
    for ask, (code, function, *status) in bare.items():
        assert ours[ask][0] == code and ours[ask][2:] == status, ask
        if function is None:
            assert ours[ask][1] is None, ask
            continue
        name = function[1]
        file = next(iter(limited.directory.glob("lib64/libcuda.so.*.*"))).name
        wanted = file if name in hooks else LIBRARIES[0].original
        assert ours[ask][1] == [wanted, name], ask
        met.add(name)
    assert {"cuMemAlloc_v2", "cuLaunchKernel_ptsz", "cuMemGetInfo_v2", "cuGetExportTable"} <= met


def test_export_tables_are_the_driver_s(limited: Container, node: simnode.Node) -> None:
    """Passed through, answer and all: what goes that way is not seen."""
    ask = (
        "import ctypes, json; l = ctypes.CDLL('libcuda.so.1'); assert l.cuInit(0) == 0; "
        "t = ctypes.c_void_p(1); u = (ctypes.c_ubyte * 16)(*range(16)); "
        "print(json.dumps([l.cuGetExportTable(ctypes.byref(t), u), bool(t.value)]))"
    )
    assert limited.python(ask) == json.loads(node.run(sys.executable, "-c", ask))


HOLD = (
    "import ctypes, sys, os, json, tenant as t; l = ctypes.CDLL(sys.argv[1]); "
    "assert l.cuInit(0) == 0; c = ctypes.c_void_p(); "
    "assert l.cuCtxCreate_v2(ctypes.byref(c), 0, 0) == 0; "
    "print(json.dumps({'code': t.allocate(l, 4 << 30)[0]}), flush=True); sys.stdin.readline()"
)


def outside(node: simnode.Node, before: set[int]) -> list[int]:
    """Bytes that processes hold which were not there before, as the node's own NVML sees them."""
    entries = json.loads(node.run("simgpu", "ledger", "--json"))["processes"]
    return [one["memory_bytes"] for one in entries if one["host_pid"] not in before]


def on_card(node: simnode.Node) -> set[int]:
    entries = json.loads(node.run("simgpu", "ledger", "--json"))["processes"]
    return {entry["host_pid"] for entry in entries}


def test_the_real_driver_by_its_path_escapes_and_is_seen(
    limited: Container, node: simnode.Node
) -> None:
    """Not stopped by a library. The node sees a process in the slice that has not registered."""
    before = on_card(node)
    process = limited.start(sys.executable, "-c", HOLD, "/opt/xpu/lib/libcuda-original.so")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["code"] == 0
    assert [size > 4 * GIB for size in outside(node, before)] == [True]
    assert xpu_pages.read_ledger(limited.ledger).processes == ()
    process.communicate("end\n")


def test_an_image_s_compat_library_is_covered(limited: Container) -> None:
    """NVIDIA's images have a libcuda of their own early in the search path."""
    compat = {"LD_LIBRARY_PATH": "/usr/local/cuda/compat:/usr/local/cuda-12.9/compat"}
    assert four_gib(limited, {"UNMASKED": "1", **compat}) == 0, "without the cover it is found"
    assert four_gib(limited, compat) == OUT_OF_MEMORY


@pytest.fixture
def preloaded(limited: Container, node: simnode.Node) -> Callable[[bool], int]:
    """On a bare host: the driver in its place, ours preloaded."""
    ours = next(iter(limited.directory.glob("lib64/libcuda.so.*.*")))

    def ask(preload: bool) -> int:
        # Set inside: with ours preloaded a program needs the original that lies there.
        inside = ["env", f"LD_LIBRARY_PATH={node.driver / 'lib'}"]
        inside += [f"LD_PRELOAD={ours}"] if preload else []
        done = limited.run(*inside, sys.executable, "-c", FOUR, "libcuda.so.1", 0)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return ask


def test_preloaded_on_a_bare_host(preloaded: Callable[[bool], int]) -> None:
    assert preloaded(True) == OUT_OF_MEMORY
    assert preloaded(False) == 0, "a variable can be unset: why preloading is opt-in"
