# SPDX-License-Identifier: Apache-2.0
"""The static programs of native/cluster, as built for nodes and images."""

from __future__ import annotations

import json
import struct
import subprocess
import tarfile

import pytest
from xpubuild import artefacts
from xpubuild.cache import Cache
from xpubuild.recipes import tools
from xpubuild.toolchain import collection_version, go, run

PT_INTERP = 3
MACHINES = {"x86_64": 62, "aarch64": 183}


def interpreters(program: bytes) -> int:
    """How many program headers of a 64-bit ELF file name a loader."""
    offset = struct.unpack_from("<Q", program, 32)[0]
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [struct.unpack_from("<I", program, offset + i * size)[0] for i in range(count)]
    return kinds.count(PT_INTERP)


@pytest.mark.parametrize("program", [tools.CLIENT_TOOL, tools.EXPORTER])
def test_a_change_of_what_it_imports_builds_it_anew(program: str) -> None:
    argv = [go(), "list", "-deps", "-json=ImportPath,Dir", f"./cmd/{program}"]
    decoder, text, found = json.JSONDecoder(), run(argv, cwd=tools.MODULE).strip(), set()
    while text:
        package, end = decoder.raw_decode(text)
        text = text[end:].strip()
        if package["ImportPath"].startswith("flexai.io/"):
            found.add(package["Dir"])
    assert {str(path.parent) for path in tools.sources(program)} == found


@pytest.mark.parametrize("arch", list(MACHINES))
def test_the_client_tool_runs_in_any_image(arch: str) -> None:
    program = tools.build(Cache(), tools.CLIENT_TOOL, arch).read_bytes()
    assert struct.unpack_from("<H", program, 18)[0] == MACHINES[arch]
    assert interpreters(program) == 0


def test_the_exporter_is_static_and_answers_for_itself() -> None:
    program = tools.build(Cache(), tools.EXPORTER)
    assert interpreters(program.read_bytes()) == 0
    done = subprocess.run([program, "--port=80"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "xpu-exporter: --port 80 is not 1025 to 65535\n",
    )
    assert collection_version().encode() in program.read_bytes()


def test_the_client_tool_is_shipped_with_the_runtime() -> None:
    packed = artefacts._xpu_runtime(Cache(), "x86_64")
    with tarfile.open(packed.path) as archive:
        member = archive.getmember("bin/xpu-client-tool")
        assert member.mode & 0o111 == 0o111
        stored = archive.extractfile(member)
        assert stored is not None
        assert stored.read() == tools.build(Cache(), tools.CLIENT_TOOL).read_bytes()
