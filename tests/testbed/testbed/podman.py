# SPDX-License-Identifier: GPL-3.0-or-later
"""Podman as the testbed uses it: thin I/O, no decisions."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import machine
from .errors import TestbedError

LABEL = "flexai.testbed"
LABEL_HOST = "flexai.testbed.host"
LABEL_DEFINITION = "flexai.testbed.definition"
# Host images are called <IMAGES><system>:<key of what they were made from>.
IMAGES = "localhost/flexai-testbed/"
# Where a container's monitor notes its exit status for podman run by root.
EXITS = Path("/run/libpod/exits")


def podman(*argv: str | Path, input: bytes | None = None, check: bool = True) -> str:
    """Run podman; its output as text."""
    done = machine.run(["podman", "--runtime", "runc", *argv], input=input, check=check)
    return done.stdout.decode(errors="replace")


def _json(*argv: str | Path) -> list[dict[str, Any]]:
    text = podman(*argv)
    return list(json.loads(text) or []) if text.strip() else []


def containers(name: str) -> list[dict[str, Any]]:
    """Containers of testbed *name*, as ``podman ps`` describes them."""
    return _json("ps", "--all", "--filter", f"label={LABEL}={name}", "--format", "json")


def stored_containers() -> list[dict[str, Any]]:
    """Every container that storage knows, also those a killed podman never finished."""
    return _json("ps", "--all", "--external", "--format", "json")


def networks_of(name: str) -> list[dict[str, Any]]:
    """The networks of testbed *name*."""
    return [found for found in networks() if (found.get("labels") or {}).get(LABEL) == name]


def networks() -> list[dict[str, Any]]:
    """All networks with their subnets and labels."""
    names = podman("network", "ls", "--quiet").split()
    return _json("network", "inspect", *names) if names else []


def start(container: str) -> None:
    """Start a container, also one whose start was broken off. It isn't broken off with us.

    A podman that is killed after its runtime has started a container, before noting it, leaves one
    that it takes for initialised ever after and can't start; looking again (``ps --sync``) doesn't
    help, putting it back to "created" does. Only the start itself can tell: until it has podman's
    lock of the container, a former podman may still be about to die. One that is killed while it
    gives the container its address leaves the address taken for good.
    """
    argv = ["podman", "--runtime", "runc", "start", container]
    if machine.run(argv, check=False, outlive=True).returncode == 0:
        return
    if podman("inspect", "--format", "{{.State.Status}}", container).strip() == "initialized":
        podman("container", "cleanup", container)
    done = machine.run(argv, check=False, outlive=True)
    said = done.stderr.decode(errors="replace").strip()
    if "is already allocated" in said:
        raise TestbedError(
            f"podman holds {container}'s address as taken, by a start that was killed: {said}",
            "take the testbed down, then up again: its next network is a new one",
        )
    if done.returncode != 0:
        raise TestbedError(f"{container} could not be started: {said}")


def has_monitor(container: str) -> bool:
    """Whether the process lives that watches a container and notes its end (conmon)."""
    pid = int(podman("inspect", "--format", "{{.State.ConmonPid}}", container))
    try:
        return b"conmon" in Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return False


def note_death(identity: str) -> None:
    """Tell podman that a container has ended whose monitor was killed with it.

    The monitor would have noted it; without its note podman takes the container for running ever
    after: it neither starts nor stops nor restarts it.
    """
    (EXITS / identity).write_text(str(128 + signal.SIGKILL))


def image_exists(reference: str) -> bool:
    return machine.run(["podman", "image", "exists", reference], check=False).returncode == 0


def host_images() -> set[str]:
    """Every host image in podman's storage, of whatever version.

    A set: an image with several names is listed once for each, with all of them.
    """
    listed = _json("images", "--filter", f"reference={IMAGES}*", "--format", "json")
    return {name for image in listed for name in image.get("Names") or []}


def import_image(archive: Path, reference: str, changes: Sequence[str]) -> None:
    """Make an image from a root file system archive."""
    flags = [word for change in changes for word in ("--change", change)]
    podman("import", "--quiet", *flags, archive, reference)


def engine() -> tuple[str, str, str]:
    """Podman's version, the cgroups' (``v1`` or ``v2``), and who manages them (``systemd`` or
    ``cgroupfs``)."""
    asked = "{{.Version.Version}} {{.Host.CgroupsVersion}} {{.Host.CgroupManager}}"
    version, cgroups, manager = podman("info", "--format", asked).split()
    return version, cgroups, manager
