# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's container toolkit, the real programs, built from their Go modules.

They call libraries of the driver (NVML, CUDA, the sandbox utilities) that they load at run time
and never link; ``xpubuild.latebound`` says how that is built.
"""

from __future__ import annotations

from pathlib import Path

from xpubuild import latebound
from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs, module_directory, zig_version

VERSION = "1.17.8"
# Of document 000; has known escapes, and is for tests of the profile documents alone.
DOCUMENTS = "1.16.1"
UPSTREAM = "github.com/NVIDIA/nvidia-container-toolkit"
MODULES = {
    VERSION: REPOSITORY / "tests/testbed/modules/nvidia-container-toolkit",
    DOCUMENTS: REPOSITORY / "tests/testbed/modules/nvidia-container-toolkit-1.16",
}
PROGRAMS = (
    "nvidia-cdi-hook",
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime-hook",
    "nvidia-ctk",
)
# Where upstream declares the functions it expects the driver to bring, by module; the second came
# with 1.17.
DECLARATIONS = (
    ("github.com/NVIDIA/go-nvml", "pkg/nvml/nvml.h"),
    (UPSTREAM, "internal/nvsandboxutils/nvsandboxutils.h"),
    (UPSTREAM, "internal/cuda/cuda.go"),
)


def _build(out: Path, version: str) -> None:
    scratch, module = latebound.scratch(out), MODULES[version]
    files = [module_directory(module, dependency) / path for dependency, path in DECLARATIONS]
    declarations = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    go_build(
        module,
        {out / name: f"{UPSTREAM}/cmd/{name}" for name in PROGRAMS},
        cgo=True,
        ldflags=f"-s -w -X {UPSTREAM}/internal/info.version={version} {latebound.LDFLAGS}",
        env=latebound.compiler(scratch, declarations),
    )


def build(cache: Cache, version: str = VERSION) -> Path:
    """nvidia-ctk, nvidia-cdi-hook, nvidia-container-runtime (also .cdi and -hook)."""
    linking = digest_file(Path(latebound.__file__))
    inputs = go_inputs(MODULES[version], Path(__file__), zig=zig_version(), linking=linking)
    return cache.get(Recipe("nvidia-container-toolkit", inputs, lambda out: _build(out, version)))
