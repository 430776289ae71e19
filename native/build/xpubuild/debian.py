# SPDX-License-Identifier: Apache-2.0
"""Root file systems of Debian and Ubuntu, made by debootstrap from keys pinned here.

``rootfs(cache, suite, include)`` is the whole interface. Packages come from the mirror this machine
already uses (its apt sources), else from the distribution's own; which mirror it was does not
matter to the result, so it is no input of the cache key. Needs root; debootstrap and gpgv are
installed where they are missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import system
from .cache import Cache, Recipe, say
from .toolchain import ToolchainError, run

# Raised by hand when the steps below change what comes out.
FORMAT = "1"
TOOLS = {
    "debootstrap": "debootstrap",
    "gpgv": "gpgv",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
SCRIPTS = Path("/usr/share/debootstrap/scripts")
APT = Path("/etc/apt")


@dataclass(frozen=True)
class Package:
    """A keyring package in some distribution's pool, pinned by the digest of its file."""

    distribution: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Distribution:
    """Where packages come from and which keys sign them.

    ``keyrings`` are tried in order: a pool drops a file when a newer revision replaces it.
    """

    mirror: str
    components: str
    keyring: str
    keyrings: tuple[Package, ...]
    script: str


DISTRIBUTIONS = {
    "debian": Distribution(
        mirror="http://deb.debian.org/debian",
        components="main",
        keyring="usr/share/keyrings/debian-archive-keyring.gpg",
        keyrings=(
            Package(
                "debian",
                "pool/main/d/debian-archive-keyring/debian-archive-keyring_2023.3+deb12u2_all.deb",
                "f699e2f88dca05212f2a452b58475f2993cb6993dfbafb1d0205a3291eb8b4b8",
            ),
            Package(
                "ubuntu",
                "pool/universe/d/debian-archive-keyring/debian-archive-keyring_2023.4ubuntu1_all.deb",
                "569ff79d0f53744f46ef22cc5f88b88180f95a21fd03c065d416b8de4d58efa0",
            ),
        ),
        script="sid",
    ),
    "ubuntu": Distribution(
        mirror="http://archive.ubuntu.com/ubuntu",
        components="main,universe",
        keyring="usr/share/keyrings/ubuntu-archive-keyring.gpg",
        keyrings=(
            Package(
                "ubuntu",
                "pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb",
                "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8",
            ),
            Package(
                "ubuntu",
                "pool/main/u/ubuntu-keyring/ubuntu-keyring_2020.02.11.4_all.deb",
                "2684fae16e90a9ff3cb4dc08a8af5bd9973d38763b60e5f458dea0b403a39788",
            ),
        ),
        script="gutsy",
    ),
}

SUITES = {"bookworm": "debian", "trixie": "debian", "jammy": "ubuntu", "noble": "ubuntu"}

# Documentation is half of such a system and nobody reads it there; fsync after every package is
# most of the time dpkg takes, and a killed build is thrown away whole.
DPKG_CONFIGURATION = """\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
"""

# Each belongs to one machine, or changes with the day of the build.
REMOVED = (
    "etc/resolv.conf",
    "etc/hostname",
    "etc/ssh/ssh_host_*",
    "var/lib/apt/lists/*",
    "var/cache/apt/*",
    "var/cache/ldconfig/*",
    "var/log/*.log",
    "var/log/apt/*",
)


# debootstrap's own messages, in the order they come.
PHASES = {
    "Retrieving InRelease": "reading the archive's index",
    "Validating ": "downloading packages",
    "Extracting ": "unpacking the base",
    "Unpacking required": "installing the base",
    "Unpacking the base": "unpacking the named packages",
    "Configuring the base": "configuring them",
}
TAIL_LINES = 40
# When we are killed, debootstrap, every dpkg below it and what they had mounted go with us.
CONTAINED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork") + (
    "--kill-child",
    "--mount-proc",
)


def _deb822_uris(text: str) -> list[str]:
    return [
        uri
        for line in text.splitlines()
        if line.lower().startswith("uris:")
        for uri in line.split(":", 1)[1].split()
    ]


def _one_line_uris(text: str) -> list[str]:
    pattern = re.compile(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)", re.MULTILINE)
    return pattern.findall(text)


def mirror_from(sources: Iterable[tuple[str, str]], distribution: str) -> str | None:
    """The mirror that apt source files ``(name, text)`` give for *distribution*, if any does.

    A mirror is told by its last path element, ``/debian`` or ``/ubuntu``; third-party
    repositories and the security archives have other ones.
    """
    for name, text in sources:
        uris = _deb822_uris(text) if name.endswith(".sources") else _one_line_uris(text)
        for uri in uris:
            if uri.startswith(("http://", "https://")) and uri.rstrip("/").endswith(
                f"/{distribution}"
            ):
                return uri.rstrip("/")
    return None


def mirror(distribution: str) -> str:
    """The mirror of *distribution* to use on this machine."""
    files = [APT / "sources.list", *sorted(APT.glob("sources.list.d/*"))]
    texts = [
        (file.name, file.read_text(errors="replace"))
        for file in files
        if file.is_file() and file.suffix in {".list", ".sources"}
    ]
    return mirror_from(texts, distribution) or DISTRIBUTIONS[distribution].mirror


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        return bytes(response.read())


def _fetch_pinned(packages: Sequence[Package], out: Path) -> None:
    """Write the first of *packages* that is served and has its digest."""
    failures = []
    for package in packages:
        url = f"{mirror(package.distribution)}/{package.path}"
        try:
            content = _fetch(url)
        except (urllib.error.URLError, OSError) as error:
            failures.append(f"{url}: {error}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == package.sha256:
            out.write_bytes(content)
            return
        failures.append(f"{url}: sha256 is {found}, pinned is {package.sha256}")
    raise ToolchainError(
        "no archive keyring with a pinned digest could be had:\n  "
        + "\n  ".join(failures)
        + "\nremedy: check the network and the mirror in /etc/apt, or pin a newer keyring package "
        f"in {__file__}"
    )


def keyring(cache: Cache, distribution: str) -> Path:
    """The pinned keys that sign *distribution*'s archive."""
    spec = DISTRIBUTIONS[distribution]
    digests = " ".join(package.sha256 for package in spec.keyrings)

    def build(out: Path) -> None:
        deb = out / "keyring.deb"
        _fetch_pinned(spec.keyrings, deb)
        unpacked = out / "unpacked"
        run(["dpkg-deb", "--extract", deb, unpacked])
        # Some revisions ship the file as a link to a .pgp beside it.
        shutil.copyfile((unpacked / spec.keyring).resolve(), out / "keyring.gpg")
        shutil.rmtree(unpacked)
        deb.unlink()

    recipe = Recipe(f"keyring-{distribution}", {"packages": digests, "format": FORMAT}, build)
    return cache.get(recipe) / "keyring.gpg"


def _script(suite: str, spec: Distribution) -> Path:
    """debootstrap's script for *suite*; older debootstraps don't know newer suites by name."""
    own = SCRIPTS / suite
    return own if own.exists() else SCRIPTS / spec.script


def _debootstrap(target: Path, suite: str, include: Sequence[str], keys: Path) -> None:
    distribution = SUITES[suite]
    spec = DISTRIBUTIONS[distribution]
    configuration = target / "etc/dpkg/dpkg.cfg.d/flexai-build"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(DPKG_CONFIGURATION)
    source = mirror(distribution)
    say(f"  debootstrap {suite} from {source} ({len(include)} packages named) …")
    _run_telling(
        [*CONTAINED, "debootstrap", "--variant=minbase"]
        + [f"--components={spec.components}", f"--keyring={keys}"]
        + [f"--include={','.join(include)}", suite, str(target), source]
        + [str(_script(suite, spec))]
    )
    configuration.unlink()


def phase(line: str) -> str | None:
    """The work a line of debootstrap's output belongs to, when it tells."""
    for pattern, name in PHASES.items():
        if line.startswith(f"I: {pattern}"):
            return name
    return None


def _run_telling(argv: Sequence[str]) -> None:
    """Run debootstrap and say which part it has come to; on failure show the end of its output."""
    environment = {
        **os.environ,
        "DEBIAN_FRONTEND": "noninteractive",
        "LC_ALL": "C",
        "PATH": system.PATH,
    }
    last: deque[str] = deque(maxlen=TAIL_LINES)
    told = None
    with subprocess.Popen(
        argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            now = phase(line)
            if now and now != told:
                say(f"    {now} …")
                told = now
    if process.returncode != 0:
        command = " ".join(argv)
        raise ToolchainError(f"{command}\nexited {process.returncode}:\n{''.join(last)}")


def _clean(target: Path) -> None:
    for pattern in REMOVED:
        for path in target.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (target / "etc/machine-id").write_text("")


def _pack(target: Path, out: Path) -> None:
    say("  packing …")
    run(
        ["tar", "--create", f"--file={out}", f"--directory={target}", "--numeric-owner"]
        + ["--sort=name", "--xattrs", "--exclude=./dev/*", "--exclude=./proc/*"]
        + ["--exclude=./sys/*", "."]
    )


def rootfs(cache: Cache, suite: str, include: Sequence[str]) -> Path:
    """``rootfs.tar`` of *suite* (minbase) with the packages *include*, built once per list."""
    if suite not in SUITES:
        raise ToolchainError(f"unknown suite {suite!r}; known: {', '.join(sorted(SUITES))}")
    packages = sorted(set(include))

    def build(out: Path) -> None:
        system.require(TOOLS, f"a root file system of {suite}")
        keys = keyring(cache, SUITES[suite])
        target = out / "root"
        try:
            _debootstrap(target, suite, packages, keys)
            _clean(target)
            _pack(target, out / "rootfs.tar")
        finally:
            shutil.rmtree(target, ignore_errors=True)

    inputs = {"suite": suite, "include": ",".join(packages), "format": FORMAT}
    return cache.get(Recipe("rootfs", inputs, build)) / "rootfs.tar"
