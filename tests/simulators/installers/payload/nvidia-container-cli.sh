#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Named stand-in for nvidia-container-cli of libnvidia-container, which can't be built here.
note='stand-in of flexai.xpu, not libnvidia-container'
case ${1:-} in
-V | --version)
    echo "cli-version: @VERSION@"
    echo "lib-version: @VERSION@"
    echo "build: $note"
    ;;
info)
    if [ ! -r /proc/driver/nvidia/version ]; then
        echo "nvidia-container-cli ($note): /proc/driver/nvidia/version is missing; is the driver loaded?" >&2
        exit 1
    fi
    echo "NVRM version:   $(sed -n 's/^NVRM version:.* \([0-9][0-9.]*\)  .*/\1/p' /proc/driver/nvidia/version)"
    echo "build:          $note"
    ;;
*)
    echo "nvidia-container-cli ($note): cannot '${*:-(nothing)}'; use the runtime's CDI mode" >&2
    exit 1
    ;;
esac
