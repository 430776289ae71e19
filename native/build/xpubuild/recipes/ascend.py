# SPDX-License-Identifier: Apache-2.0
"""NPU time sharing: the daemon and the library in its tenants.

The directory holds::

    bin/flexnpud                  the daemon
    lib/libascend_direct.so       preloaded in a container, before CANN's runtime
    share/flexnpud/               flexnpud.conf, register.sh, clear.sh, flexnpud.service
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import archive, debian
from ..cache import Cache, Recipe, digest_tree
from ..toolchain import REPOSITORY, ToolchainError, run, zig, zig_cxx, zig_version

COMMON = REPOSITORY / "native" / "common"
ASCEND = REPOSITORY / "native" / "ascend"
DAEMON = ASCEND / "flexnpud"
DIRECT = ASCEND / "direct"
INPUTS = [COMMON / "include", COMMON / "src", ASCEND / "include", DAEMON, DIRECT, Path(__file__)]

# JSON for the daemon: headers only, the same on every architecture.
JSON_PATH = "pool/main/n/nlohmann-json3/nlohmann-json3-dev_3.11.2-2_all.deb"
JSON_SHA256 = "ec57940def6b6186c30be0e0ee81d1e58f86d11a54a145b28686a1e3e4aae801"

COMPILE = [
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden"),
    *(f"-ffile-prefix-map={REPOSITORY}=.", "-Wall", "-Wextra", "-Wconversion", "-Wshadow"),
    "-Werror",
]
INCLUDES = [f"-I{COMMON / 'include'}", f"-I{ASCEND / 'include'}"]
IN_GUEST = ["-fno-exceptions", "-fno-rtti"]
# Test builds find the slice's pages by XPU_CONFIG_PAGE and XPU_LEDGER_PAGE.
FOR_TESTS = ["-DXPU_TEST_PATHS"]
SYSTEM = ["-ldl", "-lpthread", "-lrt"]
SHARED_FILES = ("flexnpud.conf", "register.sh", "clear.sh", "flexnpud.service")


def json_headers(cache: Cache) -> Path:
    """A directory with ``nlohmann/json.hpp``, from Debian's package of it."""

    def fetch(out: Path) -> None:
        url = f"{debian.mirror('debian')}/{JSON_PATH}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            package = answer.read()
        if hashlib.sha256(package).hexdigest() != JSON_SHA256:
            raise ToolchainError(f"{url} is not the file that is pinned; see {Path(__file__).name}")
        (out / "package.deb").write_bytes(package)
        run([*zig(), "ar", "x", out / "package.deb"], cwd=out)
        archive.unpack(out / "data.tar.xz", out / "data")
        (out / "data/usr/include/nlohmann").rename(out / "nlohmann")
        shutil.rmtree(out / "data")
        for leftover in out.glob("*.*"):
            leftover.unlink()

    return cache.get(Recipe("nlohmann-json", {"sha256": JSON_SHA256}, fetch))


def compile_all(
    sources: Iterable[Path], into: Path, arch: str, flags: Sequence[str | Path]
) -> list[Path]:
    """Compile each source to an object in *into*; two at a time."""
    into.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        target = into / f"{source.parent.name}-{source.stem}.o"
        run([*zig_cxx(arch), *COMPILE, *INCLUDES, *flags, "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(one, sorted(sources)))


def build_into(target: Path, arch: str, flags: Sequence[str], json: Path) -> None:
    """Build daemon and library for *arch* into *target*."""
    scratch = target / ".objects"
    for name in ("bin", "lib", "share/flexnpud"):
        (target / name).mkdir(parents=True)
    common = compile_all((COMMON / "src").glob("*.cc"), scratch, arch, [*IN_GUEST, *flags])
    direct = compile_all(DIRECT.glob("*.cc"), scratch, arch, [*IN_GUEST, *flags])
    exports = scratch / "direct.map"
    exports.write_text("{\nglobal:\n    rt*;\nlocal:\n    *;\n};\n")
    options: list[str | Path] = [
        "-Wl,-soname,libascend_direct.so",
        f"-Wl,--version-script={exports}",
        *("-Wl,-z,now", "-Wl,-z,relro", "-Wl,-z,nodelete"),
    ]
    library = target / "lib" / "libascend_direct.so"
    run([*zig_cxx(arch), "-shared", *common, *direct, "-o", library, *options, *SYSTEM])
    daemon = compile_all(DAEMON.glob("*.cc"), scratch, arch, ["-isystem", json])
    run([*zig_cxx(arch), *common, *daemon, "-o", target / "bin" / "flexnpud", *SYSTEM])
    shutil.rmtree(scratch)
    for name in SHARED_FILES:
        shutil.copy(DAEMON / name, target / "share/flexnpud" / name)


def build(cache: Cache, arch: str = "x86_64", *, for_tests: bool = False) -> Path:
    """Daemon and library for *arch*; see the module's docstring for what the directory holds."""
    flags = FOR_TESTS if for_tests else []
    json = json_headers(cache)
    inputs = {
        "sources": digest_tree(INPUTS, REPOSITORY),
        "json": JSON_SHA256,
        "zig": zig_version(),
        "arch": arch,
        "flags": " ".join(flags),
    }
    return cache.get(Recipe("ascend", inputs, lambda target: build_into(target, arch, flags, json)))
