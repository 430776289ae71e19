# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated CUDA toolkit as rpm packages, named as in NVIDIA's repositories."""

from __future__ import annotations

import json

from . import rpm
from .cudarun import BUILD, VERSION, compiler, release


def packages(version: str = VERSION, build: str = BUILD) -> list[rpm.Package]:
    """The toolkit, which brings its compiler: that has a version of its own."""
    name = release(version)
    home, dashed = f"/usr/local/cuda-{name}", name.replace(".", "-")
    said = {"cuda": {"name": "CUDA SDK", "version": version}}
    return [
        rpm.Package(
            f"cuda-toolkit-{dashed}",
            "CUDA toolkit (simulated)",
            version,
            relations=(("Requires", f"cuda-nvcc-{dashed} >= {build}"),),
            files={
                f"{home}/version.json": (f"{json.dumps(said)}\n", 0o644),
                f"/etc/ld.so.conf.d/cuda-{dashed}.conf": (f"{home}/lib64\n", 0o644),
            },
            scripts={"post": "ldconfig", "postun": "ldconfig"},
        ),
        rpm.Package(
            f"cuda-nvcc-{dashed}",
            "CUDA compiler (simulated)",
            build,
            files={f"{home}/bin/nvcc": (compiler(version, build), 0o755)},
        ),
    ]
