# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The running kernel as an installer of modules meets it: what it builds with, what it trusts."""

from __future__ import annotations

import base64
import os
import re
import typing as t

from ._host import Host

# What a module is built with; any of each line does.
TOOLS = (("cc", "gcc"), ("make",))
EFI_VARIABLES = "/sys/firmware/efi/efivars"
SECURE_BOOT = f"{EFI_VARIABLES}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# shim's own switch: 1 where it was told not to check (`mokutil --disable-validation`).
SHIM_STANDS_ASIDE = f"{EFI_VARIABLES}/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
# Where certificates lie that the kernel trusts for modules.
KEY_RINGS = (
    f"{EFI_VARIABLES}/MokListRT*",
    "/sys/firmware/efi/mok-variables/MokListRT*",
    f"{EFI_VARIABLES}/db-*",
)
# How each family of systems makes the initramfs of the running kernel anew.
INITRAMFS_TOOLS = (
    ("update-initramfs", ("-u", "-k", "{kernel}")),
    ("dracut", ("--force", "--kver", "{kernel}")),
)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


class Facts(t.NamedTuple):
    release: str
    headers: bool
    tools_missing: tuple[str, ...]
    secure_boot: bool
    initramfs_tool: str


def running() -> str:
    return os.uname().release


def _is_one(host: Host, variable: str) -> bool:
    """An EFI variable is four bytes of attributes, then its value."""
    return host.read_bytes(variable)[4:] == b"\1"


def observe(host: Host) -> Facts:
    release = running()
    build = host.resolve(f"/lib/modules/{release}/build")
    return Facts(
        release=release,
        headers=bool(build) and host.exists(f"{build}/Makefile"),
        tools_missing=tuple(names[0] for names in TOOLS if not any(map(host.program, names))),
        secure_boot=_is_one(host, SECURE_BOOT) and not _is_one(host, SHIM_STANDS_ASIDE),
        initramfs_tool=next((tool[0] for tool in INITRAMFS_TOOLS if host.program(tool[0])), ""),
    )


def obstacle(facts: Facts, system: str) -> str:
    """What a module can't be built for want of; never another kernel is the remedy."""
    rpm = system not in ("debian", "ubuntu")
    package = ("kernel-devel-" if rpm else "linux-headers-") + facts.release
    install = "dnf install" if rpm else "apt-get install"
    if not facts.headers:
        return (
            f"no headers of the running kernel {facts.release} (/lib/modules/{facts.release}/build "
            f"leads to none); `{install} {package}`, or, where the archive has them no more, boot "
            "a kernel that it has headers of"
        )
    if facts.tools_missing:
        return (
            f"no {' and no '.join(facts.tools_missing)} to build the kernel module with; "
            f"`{install} gcc make`"
        )
    return ""


def der(certificate: bytes) -> bytes:
    """A certificate in the form that key rings hold, whether it is given as PEM or DER."""
    found = _PEM.search(certificate.decode("ascii", errors="replace"))
    return base64.b64decode("".join(found.group(1).split())) if found else certificate


def is_enrolled(host: Host, certificate: str) -> bool:
    """Whether firmware or shim trusts the certificate, so that the kernel takes what it signed."""
    wanted = der(host.read_bytes(certificate))
    files = [path for pattern in KEY_RINGS for path in host.glob(pattern)]
    return bool(wanted) and any(wanted in host.read_bytes(path) for path in files)


def signing_obstacle(host: Host, key: str, certificate: str) -> str:
    """Why a signed module would be refused; empty where it would be taken."""
    if not key or not certificate:
        return (
            "Secure Boot is on and would refuse an unsigned kernel module; set "
            "nvidia_driver_signing_key and nvidia_driver_signing_certificate to a pair that is "
            "enrolled on the host, or switch Secure Boot off"
        )
    absent = [path for path in (key, certificate) if not host.exists(path)]
    if absent:
        return (
            f"Secure Boot is on and {' and '.join(absent)} is not on the host; bring the pair there"
        )
    if not is_enrolled(host, certificate):
        return (
            f"Secure Boot is on and {certificate} is not enrolled; `mokutil --import` it (as DER), "
            "reboot, and confirm it on the host's console"
        )
    return ""


def initramfs_argv(facts: Facts) -> list[str]:
    """The command that makes the running kernel's initramfs anew; empty where there is none."""
    arguments = dict(INITRAMFS_TOOLS).get(facts.initramfs_tool, ())
    if not arguments:
        return []
    return [facts.initramfs_tool, *(word.format(kernel=facts.release) for word in arguments)]
