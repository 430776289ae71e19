# SPDX-License-Identifier: Apache-2.0
"""The aarch64 build, run: C++ cases, libraries before one-page drivers, and the monitor.

Under qemu's user mode with Debian's aarch64 C library, both unpacked from their packages into the
cache. A cold build for aarch64 builds zig's C++ runtime too, so all of it is the long form.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import xpu_aarch64
from xpu_slice import GIB, HERE, STUB_UUID, Slice, make_slice, stub_driver, stub_nvml
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.recipes import cuda
from xpubuild.toolchain import REPOSITORY, run, zig_cxx, zig_version

pytestmark = pytest.mark.soak
ARCH = "aarch64"
CASES = cuda.COMMON / "tests"
OUT_OF_MEMORY = 2


@pytest.fixture(scope="module")
def emulator() -> list[str]:
    """The command that runs an aarch64 program."""
    return xpu_aarch64.emulator()


@pytest.fixture(scope="module")
def programs() -> Path:
    """The tenant, and native/common's cases."""
    tenant = HERE / "aarch64_tenant.cc"
    common = sorted((cuda.COMMON / "src").glob("*.cc"))
    cases = sorted(CASES.glob("test_*.cc"))

    def build(target: Path) -> None:
        run([*zig_cxx(ARCH), "-std=c++17", *cuda.INCLUDES, tenant, "-o", target / "tenant", "-ldl"])
        for source in cases:
            include = [*zig_cxx(ARCH), "-std=c++17", "-O1", f"-I{cuda.COMMON / 'include'}"]
            run([*include, source, *common, "-o", target / source.stem, *cuda.SYSTEM])

    inputs = {
        "sources": digest_tree([tenant, cuda.CUDA / "include", *cuda.SOURCES, CASES], REPOSITORY),
        "zig": zig_version(),
    }
    return Cache().get(Recipe("aarch64-tests", inputs, build))


@pytest.fixture
def stub(tmp_path: Path) -> Slice:
    built = cuda.build(Cache(), ARCH, for_tests=True)
    driver, nvml = stub_driver(ARCH), stub_nvml(ARCH)
    return make_slice(tmp_path, driver, STUB_UUID, {}, built, nvml)


def emulated(
    emulator: list[str], within: Slice, *words: object
) -> subprocess.CompletedProcess[str]:
    names = ("LD_LIBRARY_PATH", "XPU_CONFIG_PAGE", "XPU_LEDGER_PAGE")
    # Set for the program alone: qemu's own loader would follow LD_LIBRARY_PATH as well.
    inside = [word for name in names for word in ("-E", f"{name}={within.environment[name]}")]
    return subprocess.run(
        [*emulator, *inside, *map(str, words)], capture_output=True, text=True, timeout=300
    )


def test_a_tenant_meets_both_libraries(emulator: list[str], programs: Path, stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, cores_percent=10, tau_ns=5_000_000)
    done = emulated(emulator, stub, programs / "tenant")
    assert done.returncode == 0, done.stderr
    rows = (line.rpartition(" ") for line in done.stdout.splitlines())
    seen = {name: int(value) for name, _, value in rows}
    assert (seen["init"], seen["context"], seen["nvml"], seen["device"]) == (0, 0, 0, 0)
    assert (seen["over"], seen["held"]) == (OUT_OF_MEMORY, 0)
    assert (seen["free"], seen["total"]) == (2 * GIB, 3 * GIB)
    assert (seen["looked up is ours"], seen["future"]) == (1, 42)
    assert (seen["nvml total"], seen["nvml used"]) == (3 * GIB, GIB)
    assert (seen["processes"], seen["itself"]) == (1, 1)
    assert seen["utilisation"] <= 100
    card = stub.ledger().cards[0]
    assert card.launches == 30 and card.throttled_ns > 0 and card.denied == 1


def test_the_monitor(emulator: list[str], stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, cores_percent=20)
    monitor = stub.built / "bin" / "gpu-monitor"
    done = emulated(emulator, stub, monitor, "-p", "1", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vxpus"][0]["memory_quota"] == 3 * GIB
    stub.ledger_file.unlink()
    assert emulated(emulator, stub, monitor).returncode == 5


WITH_CASES = [path.stem for path in sorted(CASES.glob("test_*.cc")) if "CASE(" in path.read_text()]


@pytest.mark.parametrize("program", WITH_CASES)
def test_cases_of_common(emulator: list[str], programs: Path, tmp_path: Path, program: str) -> None:
    listed = subprocess.run([*emulator, programs / program], capture_output=True, text=True)
    names = listed.stdout.split()
    assert names, listed.stderr
    for name in names:
        done = subprocess.run(
            [*emulator, "-E", f"XPU_TEST_DIR={tmp_path}", programs / program, name],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
