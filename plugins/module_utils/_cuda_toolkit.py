# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The CUDA toolkit (compiler and libraries) of a host; only where a site asks for a version.

NVIDIA gives each release (12.2) a directory of its own, so that several stand side by side; within
one, versions (12.2.0, 12.2.2) replace each other.
"""

from __future__ import annotations

import json
import re
import typing as t

from . import _owners as owners
from . import _packages as packages
from . import _records as records
from ._decision import ADOPT, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._host import Host

COMPONENT = "cuda_toolkit"
RECORD = "cuda_toolkit"
# The release that programs find without naming one.
LINK = "/usr/local/cuda"
INSTALLING, INSTALLED = "installing", "installed"
_PACKAGE = r"cuda-(?:toolkit|nvcc|compiler)-{}"


def release(version: str) -> str:
    """``12.2.0`` is of release ``12.2``."""
    return ".".join(version.split(".")[:2])


def home(version: str) -> str:
    return f"/usr/local/cuda-{release(version)}"


def linker_file(version: str) -> str:
    """Where the installer tells the dynamic linker of its libraries."""
    return f"/etc/ld.so.conf.d/cuda-{release(version).replace('.', '-')}.conf"


def package(version: str) -> str:
    return f"cuda-toolkit-{release(version).replace('.', '-')}"


def installer_flags(version: str) -> list[str]:
    """The toolkit alone: the driver of the same file is role nvidia_driver's business."""
    return [
        "--silent",
        "--toolkit",
        f"--toolkitpath={home(version)}",
        "--no-man-page",
        "--override",
    ]


def package_argv(manager: str, version: str) -> list[str]:
    """From the site's own repositories; the name says the release, the version is asked for."""
    exact = f"={version}-1" if manager == "dpkg" else f"-{version}"
    return packages.install_argv(manager, [f"{package(version)}{exact}"])


class Facts(t.NamedTuple):
    """What stands in the directory of the wanted release, and what our record says."""

    present: bool
    version: str
    compiler: bool
    link: str
    packages: t.Mapping[str, str]
    manager: str
    record: t.Mapping[str, t.Any]

    @property
    def recorded(self) -> str:
        """The version that is ours, or was about to be."""
        return str(self.record.get("version", ""))


def version_in(text: str | None) -> str:
    """The toolkit's version out of its ``version.json``."""
    try:
        return str(json.loads(text or "")["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def observe(host: Host, installed: packages.Packages, wanted: str) -> Facts:
    directory = home(wanted)
    pattern = re.compile(_PACKAGE.format(re.escape(release(wanted).replace(".", "-"))))
    return Facts(
        present=host.exists(directory),
        version=version_in(host.read(f"{directory}/version.json")),
        compiler=bool(host.program(f"{directory}/bin/nvcc")),
        link=host.link(LINK),
        packages=installed.named(pattern),
        manager=installed.manager,
        record=records.read(host, RECORD),
    )


def is_ours(facts: Facts, wanted: str) -> bool:
    """Whether what stands in the wanted release's directory is what we put there."""
    return bool(facts.recorded) and home(facts.recorded) == home(wanted)


def claim(facts: Facts, wanted: str) -> Claim | None:
    """Somebody else's toolkit of this release: used where it is the version, never changed."""
    if is_ours(facts, wanted) or not (facts.present or facts.packages):
        return None
    found, variable = facts.version, "cuda_toolkit_version"
    if facts.packages:
        found = found or max(facts.packages.values())
        what = "CUDA toolkit"
        return owners.plan_packages(what, facts.manager, facts.packages, found, wanted, variable)
    if found == wanted and facts.compiler:
        reason = f"CUDA toolkit {found} in {home(wanted)} was not installed by flexai.xpu and is"
        return Claim(ADOPT, "the site", f"{reason} used as it is")
    holds = f"CUDA toolkit {found}" if found else "no whole CUDA toolkit"
    return Claim(
        REFUSE,
        "the site",
        f"{home(wanted)} holds {holds} that flexai.xpu did not install, and {wanted} is wanted; "
        + (f"set {variable}: {found} to use it, or move it away" if found else "move it away"),
    )


def plan(facts: Facts, wanted: str) -> Decision:
    claimed = claim(facts, wanted)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, wanted, facts.version)
    if claimed:
        return claimed.on(Decision(COMPONENT, OK, wanted, facts.version))
    differences = []
    if facts.record.get("state") == INSTALLING:
        differences.append(f"the installation of {facts.recorded} was broken off")
    if facts.version != wanted:
        differences.append(f"CUDA toolkit {facts.version or 'absent'} → {wanted}")
    elif not facts.compiler:
        differences.append(f"{home(wanted)}/bin/nvcc is missing")
    elif not facts.link:
        differences.append(f"{LINK} is missing")
    if facts.recorded and not is_ours(facts, wanted):
        differences.append(f"CUDA toolkit {facts.recorded} gives way")
    action = (CHANGE if facts.recorded else INSTALL) if differences else OK
    return Decision(COMPONENT, action, wanted, facts.version, "; ".join(differences))
