# SPDX-License-Identifier: Apache-2.0
"""Programs that the machine itself must bring: looked for, installed where we may, else named."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cache import say
from .toolchain import ToolchainError, run

# A user's PATH often lacks the sbin directories, also under sudo.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Machine:
    """What a look at the machine found. ``missing`` are package names."""

    root: bool
    missing: tuple[str, ...]
    apt: bool


def have(command: str) -> bool:
    """Whether the machine has *command*."""
    return shutil.which(command, path=PATH) is not None


def look(tools: Mapping[str, str]) -> Machine:
    """Our rights, and what is missing of *tools* (command → Debian and Ubuntu package)."""
    missing = {package for command, package in tools.items() if not have(command)}
    return Machine(os.geteuid() == 0, tuple(sorted(missing)), have("apt-get"))


def install_command(packages: Sequence[str]) -> list[str]:
    """What installs Debian or Ubuntu packages."""
    return ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]


def as_root() -> str:
    """The command that runs, in the form that runs it as root."""
    return f"sudo --preserve-env=PYTHONPATH,FLEXAI_TESTBED {shlex.join(sys.orig_argv)}"


def refusal(found: Machine, purpose: str) -> str | None:
    """Why *purpose*, which needs root, can't go on here, and the remedy; None where it can."""
    if not found.root:
        install = f"sudo {shlex.join(install_command(found.missing))} && " if found.missing else ""
        lacks = f" and {', '.join(found.missing)}" if found.missing else ""
        return f"{purpose} needs root{lacks}\nremedy: {install}{as_root()}"
    if found.missing and not found.apt:
        names = ", ".join(found.missing)
        return (
            f"{purpose} needs {names}, which this machine lacks, and there is no apt-get\n"
            "remedy: install the packages that hold them with this system's package manager"
        )
    return None


def install(packages: Sequence[str]) -> None:
    """Install Debian or Ubuntu packages; on failure the error has apt's own words."""
    environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "PATH": PATH}
    say(f"installing {', '.join(packages)} …")
    try:
        # A fresh machine has no package lists; one with a broken third-party source still may
        # have all it takes, so what counts is the installation.
        run(["apt-get", "update", "-q"], env=environment)
    except ToolchainError as error:
        say(f"apt-get update failed, going on with the lists there are:\n{error}")
    command = install_command(packages)
    try:
        run(command, env=environment)
    except ToolchainError as error:
        raise ToolchainError(
            f"could not install {', '.join(packages)}: {error}\n"
            f"remedy: apt-get update && {shlex.join(command)}"
        ) from None


def require(tools: Mapping[str, str], purpose: str) -> None:
    """Have root and *tools* for *purpose*, or say what to do."""
    found = look(tools)
    if reason := refusal(found, purpose):
        raise ToolchainError(reason)
    if found.missing:
        install(found.missing)
