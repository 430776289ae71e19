# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""containerd: our runtimes beside everything the site has configured.

An imported file replaces a plugin's whole table (tried on 1.6 and 1.7), so a drop-in that names
only our runtimes would reset sandbox image, registries and cgroup driver. Ours therefore holds the
complete CRI table that is in force without it, plus our runtimes, and is rendered anew when that
base changes. All text here is `containerd config dump`, which puts every table and value on lines
of their own; no TOML library is needed on the host, where Python may be older than 3.11.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import typing as t

from . import _owners as owners
from ._decision import BLOCKED, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._errors import XpuError
from ._host import Host

COMPONENT = "container_runtime"
PROGRAM = "/usr/bin/containerd"
CONFIG_FILE = "/etc/containerd/config.toml"
DROP_IN = "/etc/containerd/conf.d/flexai-xpu.toml"
# The site's text of CONFIG_FILE from before we added our import; it exists as long as the import.
ORIGINAL_FILE = "/var/lib/flexai-xpu/originals/containerd-config.toml"
SOCKET = "/run/containerd/containerd.sock"
RUNTIMES = {
    "nvidia": "/usr/bin/nvidia-container-runtime",
    "nvidia-cdi": "/usr/bin/nvidia-container-runtime.cdi",
}
# The plugin that holds the runtimes, by version of the configuration's format.
CRI_PLUGINS = {"2": "io.containerd.grpc.v1.cri", "3": "io.containerd.cri.v1.runtime"}
WANTED = "+".join(RUNTIMES)

_HEADER = re.compile(r"""^\s*\[([^\[\]"']*(?:(?:"[^"]*"|'[^']*')[^\[\]"']*)*)\]\s*$""")
_VERSION = re.compile(r"^version[ \t]*=[ \t]*(\d+)[ \t]*$", re.MULTILINE)
_IMPORTS = re.compile(r"^imports\s*=\s*\[([^\]]*)\]", re.MULTILINE)
_IMPORTS_LINE = re.compile(_IMPORTS.pattern + r"[ \t]*\n?", re.MULTILINE)
_DISABLED = re.compile(r"^\s*disabled_plugins\s*=\s*\[([^\]]*)\]", re.MULTILINE)
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")
_BASIS = re.compile(r"^# basis=([0-9a-f]{64}) body=([0-9a-f]{64})$", re.MULTILINE)


class Facts(t.NamedTuple):
    installed: bool
    config: str | None
    drop_in: str | None = None
    basis: str = ""
    restart_pending: bool = False
    # Runtime of ours → program that the site's own files name for it.
    theirs: t.Mapping[str, str] = {}


# -- text ------------------------------------------------------------------------------------


def _strings(array: str) -> list[str]:
    return [found[0] or found[1] for found in _QUOTED.findall(array)]


def imports(config: str) -> list[str]:
    found = _IMPORTS.search(_before_tables(config))
    return _strings(found.group(1)) if found else []


def _before_tables(config: str) -> str:
    lines = config.splitlines(keepends=True)
    for index, line in enumerate(lines):
        if _HEADER.match(line):
            return "".join(lines[:index])
    return config


def cri_disabled(config: str) -> bool:
    found = _DISABLED.search(_before_tables(config))
    names = _strings(found.group(1)) if found else []
    return any(name == "cri" or name in CRI_PLUGINS.values() for name in names)


def covers_drop_in(config: str) -> bool:
    """Whether the configuration imports our file already."""
    directory = os.path.dirname(CONFIG_FILE)
    patterns = [os.path.join(directory, name) for name in imports(config)]
    return any(fnmatch.fnmatch(DROP_IN, pattern) for pattern in patterns)


def with_imports(config: str, entries: t.Sequence[str]) -> str:
    """*config* whose imports are exactly *entries*; nothing else changes."""
    line = "imports = [" + ", ".join(f'"{entry}"' for entry in entries) + "]"
    head = _before_tables(config)
    rest = config[len(head) :]
    if _IMPORTS.search(head):
        return _IMPORTS.sub(lambda _found: line, head, count=1) + rest
    version = _VERSION.search(head)
    if version:
        return head[: version.end()] + "\n" + line + head[version.end() :] + rest
    return f"version = 2\n{line}\n{head}{rest}"


def importing_us(config: str | None) -> str:
    """The site's configuration, with our drop-in imported; unchanged when it is already."""
    text = config or ""
    if covers_drop_in(text):
        return text
    # This file alone: a pattern would put stray files of the site in force that never were.
    return with_imports(text, [*imports(text), DROP_IN])


def without_our_import(config: str | None, original: str | None) -> str | None:
    """The site's configuration as it is without us; None where there was no file.

    *original* is None where we added no import. What the site has edited since stays.
    """
    if config is None or original is None:
        return config
    if config == importing_us(original):
        return original or None
    theirs = [entry for entry in imports(config) if entry != DROP_IN]
    if theirs or _IMPORTS.search(_before_tables(original)):
        return with_imports(config, theirs)
    head = _before_tables(config)
    return _IMPORTS_LINE.sub("", head, count=1) + config[len(head) :]


def _name(header: str) -> tuple[str, ...]:
    """``plugins."io.x".cri`` as its parts, whichever quotes are used."""
    parts = re.findall(r""""([^"]*)"|'([^']*)'|([^.\s"']+)""", header)
    return tuple(a or b or c for a, b, c in parts)


def tables(dump: str) -> t.Iterator[tuple[tuple[str, ...], list[str]]]:
    """(name parts, lines with the header) of each table; the lines before the first are ``()``."""
    name: tuple[str, ...] = ()
    lines: list[str] = []
    for line in dump.splitlines():
        header = _HEADER.match(line)
        if header:
            yield name, lines
            name, lines = _name(header.group(1)), []
        if line.strip():
            lines.append(line)
    yield name, lines


def format_version(dump: str) -> str:
    found = _VERSION.search(dump)
    version = found.group(1) if found else "1"
    if version not in CRI_PLUGINS:
        raise XpuError(
            f"containerd's configuration has format version {version}.",
            "migrate it (`containerd config migrate`) to version 2 or 3.",
        )
    return version


def _runtime_tables(
    runc: t.Mapping[tuple[str, ...], list[str]], prefix: tuple[str, ...], name: str
) -> list[str]:
    """The tables of one of our runtimes: runc's own, with another program to run."""
    lines: list[str] = []
    for table, body in runc.items():
        inner = table[len(prefix) + 1 :]
        indent = "  " * (len(table) - 1)
        quoted = ".".join(_quote(part) for part in (*prefix, name, *inner))
        lines.append(f"{indent}[{quoted}]")
        kept = [line for line in body[1:] if not line.strip().startswith("BinaryName")]
        lines += [f"{indent}  {line.strip()}" for line in kept]
        if inner == ("options",):
            lines.append(f'{indent}  BinaryName = "{RUNTIMES[name]}"')
    return lines


def _quote(part: str) -> str:
    return part if re.match(r"^[A-Za-z0-9_-]+$", part) else f'"{part}"'


def render(base_dump: str, basis: str) -> str:
    """Our drop-in: the CRI table of *base_dump*, complete, with our runtimes in place."""
    version = format_version(base_dump)
    plugin = ("plugins", CRI_PLUGINS[version])
    prefix = (*plugin, "containerd", "runtimes")
    kept: list[str] = []
    runc: dict[tuple[str, ...], list[str]] = {}
    for name, lines in tables(base_dump):
        if name[:2] != plugin:
            continue
        if name[: len(prefix)] == prefix and name[len(prefix) :][:1] == ("runc",):
            runc[name] = lines
        if (
            name[: len(prefix)] == prefix
            and name[len(prefix) :][:1]
            and name[len(prefix)] in RUNTIMES
        ):
            continue
        kept += lines
    if (*prefix, "runc", "options") not in runc:
        raise XpuError(
            "containerd's effective configuration has no runtime runc with options.",
            f"define [{'.'.join(_quote(part) for part in (*prefix, 'runc', 'options'))}] "
            f"in {CONFIG_FILE}.",
        )
    for runtime in RUNTIMES:
        kept += _runtime_tables(runc, prefix, runtime)
    body = f"version = {version}\n\n" + "\n".join(kept) + "\n"
    digest = hashlib.sha256(body.encode()).hexdigest()
    return (
        "# Written by flexai.xpu (role container_runtime): the whole CRI table that is in force\n"
        "# without this file, and our runtimes. Change the site's own files; it follows them.\n"
        f"# basis={basis} body={digest}\n{body}"
    )


def drop_in_is_current(text: str | None, basis: str) -> bool:
    """Whether our file was rendered from exactly this base and is unaltered since."""
    found = _BASIS.search(text or "")
    if not found or text is None:
        return False
    body = text[found.end() + 1 :]
    return found.group(1) == basis and found.group(2) == hashlib.sha256(body.encode()).hexdigest()


# -- observation -----------------------------------------------------------------------------


def foreign_imports(host: Host, config: str) -> list[str]:
    """Files that the configuration imports, without ours."""
    directory = os.path.dirname(CONFIG_FILE)
    found: list[str] = []
    for entry in imports(config):
        found += [
            path
            for path in host.glob(os.path.join(directory, entry))
            if path != DROP_IN and path not in found
        ]
    return found


def basis_of(host: Host, config: str | None) -> str:
    """Digest over all that the effective CRI table follows from, except our own file.

    The program stands in it by size and time of change, since its defaults are in the table.
    """
    text = importing_us(config)
    total = hashlib.sha256(text.encode())
    for path in foreign_imports(host, text):
        total.update(f"\0{path}\0{host.read(path)}".encode())
    program = host.stat(PROGRAM)
    if program:
        total.update(f"\0{program.st_size} {program.st_mtime_ns}".encode())
    return total.hexdigest()


def programs_named(text: str) -> dict[str, str]:
    """Runtimes under our names that a configuration defines, with their programs."""
    found = {}
    for name, lines in tables(text):
        if len(name) > 2 and name[-1] == "options" and name[-2] in RUNTIMES:
            for line in lines:
                key, _equals, value = line.partition("=")
                if key.strip() == "BinaryName":
                    found[name[-2]] = value.strip().strip("\"'")
    return found


def foreign_programs(host: Host, config: str | None) -> dict[str, str]:
    """What the site itself defines under our names; the later file wins, as in containerd."""
    text = config or ""
    found = programs_named(text)
    for path in foreign_imports(host, text):
        found.update(programs_named(host.read(path) or ""))
    return found


def _restart_pending(host: Host) -> bool:
    """Our file is newer than the running daemon's socket: a restart was due and did not happen."""
    written, started = host.stat(DROP_IN), host.stat(SOCKET)
    return bool(written and started and written.st_mtime_ns > started.st_mtime_ns)


def observe(host: Host) -> Facts:
    config = host.read(CONFIG_FILE)
    return Facts(
        installed=bool(host.program(PROGRAM)),
        config=config,
        drop_in=host.read(DROP_IN),
        basis=basis_of(host, config),
        restart_pending=_restart_pending(host),
        theirs=foreign_programs(host, config),
    )


def plan(facts: Facts, trace: Claim | None = None) -> Decision:
    found = WANTED if facts.drop_in else ""
    if not facts.installed:
        return Decision(
            COMPONENT, BLOCKED, WANTED, "", f"{PROGRAM} is not installed; install containerd first"
        )
    if cri_disabled(facts.config or ""):
        reason = f"disabled_plugins in {CONFIG_FILE} names the CRI plugin; take it out"
        return Decision(COMPONENT, BLOCKED, WANTED, found, reason)
    claimed = owners.plan_runtimes("containerd's configuration", facts.theirs, RUNTIMES, trace)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, WANTED, found)
    differences = []
    if not covers_drop_in(facts.config or ""):
        differences.append(f"{CONFIG_FILE} does not import {DROP_IN}")
    if not drop_in_is_current(facts.drop_in, facts.basis):
        differences.append(f"{DROP_IN} is missing, altered or of an older base configuration")
    if facts.restart_pending:
        differences.append("containerd has not been restarted since its configuration changed")
    action = (CHANGE if found else INSTALL) if differences else OK
    decision = Decision(COMPONENT, action, WANTED, found, "; ".join(differences))
    return claimed.on(decision) if claimed else decision
