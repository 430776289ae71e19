# SPDX-License-Identifier: GPL-3.0-or-later
"""Podman as the testbed uses it: thin I/O, no decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import machine

LABEL = "flexai.testbed"
LABEL_HOST = "flexai.testbed.host"
LABEL_DEFINITION = "flexai.testbed.definition"
# Host images are called <IMAGES><system>:<key of what they were made from>.
IMAGES = "localhost/flexai-testbed/"


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


def networks() -> list[dict[str, Any]]:
    """All networks with their subnets and labels."""
    names = podman("network", "ls", "--quiet").split()
    return _json("network", "inspect", *names) if names else []


def start(container: str) -> None:
    """Start a container, also one whose start was broken off.

    A podman that is killed after its runtime has started a container, before noting it, leaves one
    that it takes for initialised ever after and can't start; looking again (``ps --sync``) doesn't
    help, putting it back to "created" does. Only the start itself can tell: until it has podman's
    lock of the container, a former podman may still be about to die.
    """
    argv = ["podman", "--runtime", "runc", "start", container]
    if machine.run(argv, check=False).returncode == 0:
        return
    if podman("inspect", "--format", "{{.State.Status}}", container).strip() == "initialized":
        podman("container", "cleanup", container)
    podman("start", container)


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
