# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host images nobody needs any more."""

from __future__ import annotations

from pathlib import Path

from testbed.hosts import Testbed
from testbed.plan import make_testbed
from testbed.prune import awaited, unused
from testbed.topology import HostSpec, Topology

OLD = "localhost/flexai-testbed/debian12:old"
NEW = "localhost/flexai-testbed/debian12:new"
UBUNTU = "localhost/flexai-testbed/ubuntu2404:one"


def a_testbed(tmp_path: Path) -> Testbed:
    hosts = (HostSpec("a", "debian12", (), None), HostSpec("b", "ubuntu2404", (), None))
    return make_testbed(Topology("lab", None, None, hosts), "lab", "10.1.2.0/24", tmp_path)


def test_an_image_without_a_container_goes() -> None:
    assert unused([OLD, NEW, UBUNTU], used=[NEW, UBUNTU], awaited=()) == [OLD]


def test_images_of_a_system_that_a_testbed_awaits_stay() -> None:
    assert unused([OLD, NEW, UBUNTU], used=(), awaited=["debian12"]) == [UBUNTU]


def test_a_host_without_a_container_awaits_its_system(tmp_path: Path) -> None:
    bed = a_testbed(tmp_path)
    assert awaited([bed], ["lab-a"]) == {"ubuntu2404"}
    assert awaited([bed], ["lab-a", "lab-b", "elsewhere"]) == set()
