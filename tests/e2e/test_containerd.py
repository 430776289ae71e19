# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in force in a real containerd after the main job, beside what would be without us."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from e2e.conftest import Demo

OURS = {
    "nvidia": "/usr/bin/nvidia-container-runtime",
    "nvidia-cdi": "/usr/bin/nvidia-container-runtime.cdi",
}
# Debian 12's containerd 1.6 and Ubuntu 24.04's 1.7.
HOSTS = ("gpu1", "gpu2")
# The testbed's configuration imports every file of conf.d, and ours is the only one there.
WITHOUT_US = """\
cd /run
sed 's|^imports = .*|imports = []|' /etc/containerd/config.toml > without-us.toml
containerd --config /run/without-us.toml config dump
rm without-us.toml
"""


def cri(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["plugins"]["io.containerd.grpc.v1.cri"]
    return found


@pytest.mark.parametrize("host", HOSTS)
def test_the_effective_configuration_differs_by_our_runtimes_alone(demo: Demo, host: str) -> None:
    def dump(*command: str) -> dict[str, Any]:
        return tomllib.loads(demo.platform.on_host(host, *command).output)

    with_us = dump("containerd", "config", "dump")
    without = dump("sh", "-ec", WITHOUT_US)
    assert not OURS.keys() & cri(without)["containerd"]["runtimes"].keys()
    added = {
        name: cri(with_us)["containerd"]["runtimes"].pop(name)["options"]["BinaryName"]
        for name in OURS
    }
    assert added == OURS
    for document in (with_us, without):
        del document["imports"]  # the files that it was made from
    assert with_us == without
