# SPDX-License-Identifier: Apache-2.0
"""A C compiler for Go programs that call a driver's library which they load at run time.

NVIDIA's Go bindings never link NVML: they leave its functions unresolved, load the library with
``dlopen`` and call through the PLT, which binds at the first call. They ask GNU ld to ignore what
stays unresolved; zig's linker knows no such flag, so every such function is declared weak instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from .toolchain import zig_cc

# Binding at the first call needs the first two: symbols of the loaded library must be found, and
# not before it is loaded. Go's own -s doesn't reach zig's linker, hence the third.
LDFLAGS = "'-extldflags=-Wl,--export-dynamic -Wl,-z,lazy -Wl,-s'"
_DRIVER_FUNCTION = re.compile(r"\b((?:nvml|nvSandboxUtils|cu)[A-Z]\w*)\s*\(")


def weak_header(declarations: Iterable[str]) -> str:
    """A C header that makes every driver function named in *declarations* a weak symbol."""
    names = {name for text in declarations for name in _DRIVER_FUNCTION.findall(text)}
    return "".join(f"#pragma weak {name}\n" for name in sorted(names))


def scratch(out: Path) -> Path:
    """Where :func:`compiler` puts its files for a recipe that builds into *out*.

    At a fixed place: the compiler's path is an input of Go's own build cache, and with a new one
    each time every package that uses C would be compiled again.
    """
    place = out.parent / ".latebound"
    place.mkdir(exist_ok=True)
    return place


def compiler(scratch: Path, declarations: Iterable[str]) -> dict[str, str]:
    """Go's environment (CC, CGO_CFLAGS) for such a build; *scratch* must outlive the build."""
    header = scratch / "weak.h"
    header.write_text(weak_header(declarations), encoding="utf-8")
    wrapper = scratch / "cc"
    wrapper.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        "    shift\n"
        '    case $word in -Wl,--unresolved-symbols=*) ;; *) set -- "$@" "$word" ;; esac\n'
        "done\n"
        f'exec {shlex.join(zig_cc())} "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(0o755)
    # -w: a unit that uses none of the functions would be warned about each pragma, and
    # runtime/cgo makes warnings errors.
    return {"CC": str(wrapper), "CGO_CFLAGS": f"-O2 -w -include {header}"}
