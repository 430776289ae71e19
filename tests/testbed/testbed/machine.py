# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that testbeds run on: its rights, its tools, running a command, one lock per testbed.

Commands that change anything die with us (``setpriv --pdeathsig``): an ``up`` that is killed leaves
no podman behind that goes on creating things while ``down`` removes them. What must not stop half
way outlives us instead.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xpubuild import system
from xpubuild.cache import say

from .errors import TestbedError

# Command → Debian and Ubuntu package. netavark is no command in PATH, so it stands apart.
TOOLS = {
    "podman": "podman",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "gpgv": "gpgv",
    "ip": "iproute2",
    "modinfo": "kmod",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
}
NETAVARK = (Path("/usr/lib/podman/netavark"), Path("/usr/libexec/podman/netavark"))
LOCKS = Path("/run/lock")
# Every systemd, containerd and kubelet takes some; the kernel's default of 128 is used up by about
# six hosts, and then units fail with "too many open files".
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_WANTED = 1024


@dataclass(frozen=True)
class Finding:
    """What a look at the machine found. ``missing`` are package names."""

    root: bool
    missing: tuple[str, ...]
    apt: bool


def missing_packages(have: Callable[[str], bool], netavark: bool) -> tuple[str, ...]:
    """Packages to install, given which commands there are."""
    missing = {package for command, package in TOOLS.items() if not have(command)}
    if not netavark:
        missing.add("netavark")
    return tuple(sorted(missing))


def look() -> Finding:
    """Which rights and tools there are."""
    return Finding(
        root=os.geteuid() == 0,
        missing=missing_packages(system.have, any(path.exists() for path in NETAVARK)),
        apt=system.have("apt-get"),
    )


def decide(found: Finding) -> tuple[str, ...]:
    """Packages to install now; an error where we may not, or can't."""
    if not found.root:
        missing = f" (and {', '.join(found.missing)}, which root gets installed)"
        raise TestbedError(
            "the testbed needs root: its hosts are privileged containers with their own network"
            + (missing if found.missing else ""),
            system.as_root(),
        )
    if found.missing and not found.apt:
        raise TestbedError(
            f"missing on this machine: {', '.join(found.missing)} (and there is no apt-get)",
            "install the packages that hold them with this system's package manager",
        )
    return found.missing


def prepare() -> None:
    """Make the machine able to run testbeds, or say what it lacks."""
    packages = decide(look())
    if packages:
        system.install(packages)
    _raise_inotify_limit()


def _raise_inotify_limit() -> None:
    found = int(INOTIFY.read_text())
    if found < INOTIFY_WANTED:
        INOTIFY.write_text(str(INOTIFY_WANTED))
        say(f"raised {INOTIFY} from {found} to {INOTIFY_WANTED} until the next boot")


def run(
    argv: Sequence[str | Path],
    *,
    input: bytes | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    outlive: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the machine that ends when we end, or goes to its own end (*outlive*)."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words if outlive else ["setpriv", "--pdeathsig", "TERM", *words],
            start_new_session=outlive,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env={**os.environ, "PATH": system.PATH, **(env or {})},
            check=False,
            timeout=timeout,
        )
    except FileNotFoundError:
        missing = words[0] if outlive else "setpriv"
        package = TOOLS[missing]
        raise TestbedError(f"{missing} is missing", f"apt-get install {package}") from None
    except subprocess.TimeoutExpired:
        raise TestbedError(f"{shlex.join(words)} did not end within {timeout:g} s") from None
    if check and done.returncode != 0:
        output = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise TestbedError(f"{shlex.join(words)} exited {done.returncode}: {output}")
    return done


def _lock_path(name: str) -> Path:
    return LOCKS / f"flexai-testbed-{name}.lock"


@contextmanager
def locked(name: str, *, remove: bool = False) -> Iterator[None]:
    """Hold the testbed's lock; ``remove`` it at the end (``down`` leaves nothing).

    A waiter may get the lock of a file that was removed meanwhile, so the inode is compared.
    """
    path = _lock_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another command holds {path}; waiting for it …")
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                continue
            try:
                yield
            finally:
                if remove:
                    path.unlink(missing_ok=True)
            return
