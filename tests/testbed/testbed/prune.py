# SPDX-License-Identifier: GPL-3.0-or-later
"""``prune``: removes host images that no testbed uses; each new version of one leaves the old."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .hosts import STATE_ROOT, Testbed, load
from .podman import IMAGES, host_images, podman, stored_containers


def system_of(image: str) -> str:
    """The system a host image was made for."""
    return image.removeprefix(IMAGES).rpartition(":")[0]


def unused(images: Iterable[str], used: Iterable[str], awaited: Iterable[str]) -> list[str]:
    """*images* that no container uses (*used*) and no unfinished testbed awaits.

    *awaited* are systems: an ``up`` at work has imported its image and not yet made the container.
    """
    kept, systems = set(used), set(awaited)
    return sorted(i for i in images if i not in kept and system_of(i) not in systems)


def awaited(testbeds: Sequence[Testbed], containers: Iterable[str]) -> set[str]:
    """Systems of hosts that have no container yet."""
    made = set(containers)
    return {host.os for bed in testbeds for host in bed.hosts if host.container not in made}


def prune(say: Callable[[str], None]) -> int:
    """Remove them; returns how many."""
    stored = stored_containers()
    names = [name for entry in stored for name in entry["Names"] or []]
    testbeds = [load(path.parent.name) for path in sorted(STATE_ROOT.glob("*/state.json"))]
    found = unused(
        host_images(), (str(entry["Image"]) for entry in stored), awaited(testbeds, names)
    )
    for image in found:
        # Without --force: podman itself refuses an image that a container got meanwhile.
        podman("rmi", image)
        say(f"removed image {image}")
    return len(found)
