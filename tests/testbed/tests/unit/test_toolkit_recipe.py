# SPDX-License-Identifier: GPL-3.0-or-later
"""The header that lets zig link programs whose symbols only a driver brings."""

from __future__ import annotations

from testbed.recipes import toolkit


def test_every_driver_function_becomes_weak_once() -> None:
    declarations = [
        "nvmlReturn_t DECLDIR nvmlInit_v2(void);\n// see nvmlInit_v2 ()",
        "CUresult CUDAAPI cuInit(unsigned int Flags);",
    ]
    assert toolkit.weak_header(declarations) == ("#pragma weak cuInit\n#pragma weak nvmlInit_v2\n")


def test_other_functions_and_types_are_left_alone() -> None:
    assert toolkit.weak_header(["int curl_init(void); typedef int CUdevice; nvmlDevice_t d;"]) == ""
