# SPDX-License-Identifier: Apache-2.0
"""The header that lets zig link programs whose symbols only a driver brings."""

from __future__ import annotations

from xpubuild import latebound


def test_every_driver_function_becomes_weak_once() -> None:
    declarations = [
        "nvmlReturn_t DECLDIR nvmlInit_v2(void);\n// see nvmlInit_v2 ()",
        "CUresult CUDAAPI cuInit(unsigned int Flags);",
    ]
    assert latebound.weak_header(declarations) == (
        "#pragma weak cuInit\n#pragma weak nvmlInit_v2\n"
    )


def test_other_functions_and_types_are_left_alone() -> None:
    assert (
        latebound.weak_header(["int curl_init(void); typedef int CUdevice; nvmlDevice_t d;"]) == ""
    )
