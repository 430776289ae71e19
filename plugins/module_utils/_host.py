# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""All input and output of the node path: files under a host root, and programs.

The root is ``/`` on a real host. Tests and benchmarks give each host a directory of its own; paths
are then taken under it, and programs run only when they lie under it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import subprocess
import tempfile
import typing as t

PROGRAM_DIRECTORIES = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
)
NOT_FOUND = 127
_OS_RELEASE = re.compile(r"""^(ID|VERSION_ID)=["']?([^"'\n]*)["']?$""", re.MULTILINE)


class Completed(t.NamedTuple):
    """A finished program."""

    rc: int
    out: str = ""
    err: str = ""


Runner = t.Callable[[t.Sequence[str], float], Completed]


def _run_for_real(argv: t.Sequence[str], timeout_s: float) -> Completed:
    environment = dict(os.environ, LC_ALL="C", PATH=":".join(PROGRAM_DIRECTORIES))
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Completed(124, "", f"no answer within {timeout_s:.0f} s")
    except OSError as error:
        return Completed(NOT_FOUND, "", str(error))
    return Completed(done.returncode, done.stdout, done.stderr)


class Host:
    """The files and programs below one root directory."""

    def __init__(self, root: str = "/", runner: Runner | None = None) -> None:
        self.root = os.path.abspath(root)
        self._runner = runner or _run_for_real

    @property
    def is_real(self) -> bool:
        """Whether this is the running system itself, with its services and kernel."""
        return self.root == "/"

    def path(self, path: str) -> str:
        """Where *path* of the host lies on this machine."""
        return path if self.is_real else self.root + path

    def _inside(self, real: str) -> str:
        return real if self.is_real else real[len(self.root) :]

    # -- reading -----------------------------------------------------------------------------
    def read(self, path: str) -> str | None:
        """The text of a file; None where there is none."""
        try:
            with open(self.path(path), encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_bytes(self, path: str) -> bytes:
        """The bytes of a file; none where there is no file, or none that may be read."""
        try:
            with open(self.path(path), "rb") as stream:
                return stream.read()
        except OSError:
            return b""

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.path(path))

    def is_directory(self, path: str) -> bool:
        real = self.path(path)
        return os.path.isdir(real) and not os.path.islink(real)

    def link(self, path: str) -> str:
        """What a symbolic link says; empty where it is none."""
        try:
            return os.readlink(self.path(path))
        except OSError:
            return ""

    def resolve(self, path: str) -> str:
        """The file that *path* leads to over links that stay in one directory tree; else empty."""
        for _hop in range(8):
            target = self.link(path)
            if not target:
                return path if self.exists(path) else ""
            path = os.path.normpath(os.path.join(os.path.dirname(path), target))
        return ""

    def glob(self, pattern: str) -> list[str]:
        return sorted(self._inside(found) for found in glob.glob(self.path(pattern)))

    def stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(self.path(path))
        except OSError:
            return None

    def digest(self, path: str) -> str:
        """SHA-256 of a file in hex; empty where there is no file."""
        total = hashlib.sha256()
        try:
            with open(self.path(path), "rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    total.update(block)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return ""
        return total.hexdigest()

    def free_bytes(self, path: str) -> int:
        """Room for new files at *path*, or at its nearest existing parent."""
        real = self.path(path)
        while not os.path.isdir(real):
            real = os.path.dirname(real)
        state = os.statvfs(real)
        return state.f_bavail * state.f_frsize

    # -- writing -----------------------------------------------------------------------------
    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Replace a file in one step, durably; an existing file keeps its mode and owner."""
        self.write_bytes(path, text.encode(), mode)

    def write_bytes(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Likewise of a file that is no text."""
        real = self.path(path)
        directory = os.path.dirname(real)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        before = self.stat(path)
        handle, scratch = tempfile.mkstemp(prefix=".flexai-", dir=directory)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(scratch, before.st_mode & 0o7777 if before else mode)
            if before and os.geteuid() == 0:
                os.chown(scratch, before.st_uid, before.st_gid)
            os.rename(scratch, real)
        except BaseException:
            os.unlink(scratch)
            raise

    def point(self, path: str, target: str) -> None:
        """Make *path* a symbolic link to *target* by one rename."""
        real = self.path(path)
        os.makedirs(os.path.dirname(real), mode=0o755, exist_ok=True)
        scratch = f"{real}.flexai-{os.getpid()}"
        os.symlink(target, scratch)
        os.replace(scratch, real)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(path))

    def remove_empty(self, directory: str) -> None:
        """Remove a directory when nothing is in it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            try:
                os.rmdir(self.path(directory))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    # -- programs ----------------------------------------------------------------------------
    def program(self, name: str) -> str:
        """Full path on the host of a program; empty where it is not installed."""
        candidates = (
            (name,)
            if name.startswith("/")
            else tuple(f"{directory}/{name}" for directory in PROGRAM_DIRECTORIES)
        )
        for candidate in candidates:
            if os.access(self.path(candidate), os.X_OK):
                return candidate
        return ""

    def run(self, argv: t.Sequence[str], timeout_s: float = 60) -> Completed:
        """Run a program of the host; a program that is not there is rc 127, a hung one rc 124."""
        program = self.program(argv[0])
        if not program:
            return Completed(NOT_FOUND, "", f"{argv[0]}: not installed")
        return self._runner([self.path(program), *argv[1:]], timeout_s)


def system_of(host: Host) -> tuple[str, str]:
    """(distribution, release)"""
    found = dict(_OS_RELEASE.findall(host.read("/etc/os-release") or ""))
    return found.get("ID", ""), found.get("VERSION_ID", "")
