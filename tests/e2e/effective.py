# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in force in a host's containerd, beside what would be without us."""

from __future__ import annotations

import tomllib
from typing import Any

from e2e.platform import Platform

OURS = {
    "nvidia": "/usr/bin/nvidia-container-runtime",
    "nvidia-cdi": "/usr/bin/nvidia-container-runtime.cdi",
}
# The plugin that holds the runtimes, by version of the configuration's format.
PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
# The testbed's configuration imports every file of conf.d, and ours is the only one there.
WITHOUT_US = """\
cd /run
sed 's|^imports = .*|imports = []|' /etc/containerd/config.toml > without-us.toml
containerd --config /run/without-us.toml config dump
rm without-us.toml
"""


def runtimes(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["plugins"][PLUGINS[document["version"]]]["containerd"]
    there: dict[str, Any] = found["runtimes"]
    return there


def assert_ours_alone(platform: Platform, host: str, version: int) -> None:
    """The effective configuration is of that format, and differs by our runtimes alone."""

    def dump(*command: str) -> dict[str, Any]:
        return tomllib.loads(platform.on_host(host, *command).output)

    with_us = dump("containerd", "config", "dump")
    without = dump("sh", "-ec", WITHOUT_US)
    assert with_us["version"] == without["version"] == version
    assert not OURS.keys() & runtimes(without).keys()
    added = {name: runtimes(with_us).pop(name)["options"]["BinaryName"] for name in OURS}
    assert added == OURS
    for document in (with_us, without):
        del document["imports"]  # the files that it was made from
    assert with_us == without
