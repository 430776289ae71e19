#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# A SIMULATED nvcc: it says its version, as `nvcc -V` does, and compiles nothing.
case ${1:-} in
-V | --version)
    echo 'nvcc: NVIDIA (R) Cuda compiler driver'
    echo '(SIMULATION: flexai.xpu tests/simulators)'
    echo 'Cuda compilation tools, release @RELEASE@, V@BUILD@'
    ;;
*)
    echo 'nvcc (simulation): compiles nothing' >&2
    exit 1
    ;;
esac
