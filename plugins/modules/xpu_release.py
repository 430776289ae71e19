# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: xpu_release
short_description: Install a version of the xpu runtime and switch to it
version_added: 0.1.0
description:
  - Unpacks a tarball of C(lib), C(bin) and C(VERSION) into a directory of its own under
    C(/opt/xpu/versions) and makes C(/opt/xpu/current) lead to it by one rename.
  - Former versions stay, since running containers have their files mounted.
  - Takes the directory over from the chart's DaemonSet client-update, where that has been there
    before, by the record C(/opt/xpu/owner).
options:
  version:
    description: Version of the runtime.
    type: str
  sha256:
    description: Digest of the tarball; its first digits tell builds of one version apart.
    type: str
  tarball:
    description: Path of the tarball on the host; needed when the release isn't there.
    type: path
  state:
    description: V(absent) takes the links and all our versions away.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Switch to a release
  flexai.xpu.xpu_release:
    version: 0.1.0
    sha256: "{{ tarball.artefact.sha256 }}"
    tarball: /var/cache/flexai-xpu/xpu-runtime.tar.gz
"""

RETURN = r"""
directory:
  description: Where the release lies.
  returned: success
  type: str
"""

import contextlib
import fcntl
import os
import shutil
import tarfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _records as records
from ..module_utils import _selinux as selinux
from ..module_utils import _xpu_runtime as xpu
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

TOP = ("lib", "bin", "VERSION")


def _members(archive: tarfile.TarFile, tarball: str) -> list[tarfile.TarInfo]:
    """The files of the tarball; anything that could leave its directory is refused."""
    members = []
    for member in archive.getmembers():
        name = os.path.normpath(member.name)
        if name == ".":
            continue
        # xpu-monitor is a link to gpu-monitor beside it; no other kind of link has a use here.
        neighbour = member.issym() and "/" not in member.linkname and member.linkname != ".."
        plain = member.isfile() or member.isdir() or neighbour
        if name.split("/")[0] not in TOP or not plain:
            raise XpuError(
                f"{os.path.basename(tarball)} holds {member.name}, which is no file or directory "
                f"under {', '.join(TOP)}.",
                "build it with `make dist`; a runtime from elsewhere has another shape.",
            )
        member.name = name
        members.append(member)
    return members


def _unpack(host: Host, tarball: str, directory: str) -> dict[str, str]:
    """Unpack into *directory*; file → digest."""
    digests: dict[str, str] = {}
    links: list[str] = []
    with tarfile.open(host.path(tarball)) as archive:
        for member in _members(archive, tarball):
            target = f"{directory}/{member.name}"
            if member.isdir():
                os.makedirs(host.path(target), mode=0o755, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(host.path(target)), mode=0o755, exist_ok=True)
            if member.issym():
                os.symlink(member.linkname, host.path(target))
                links.append(target)
                continue
            source = archive.extractfile(member)
            if source is None:  # _members() lets only files, directories and links pass
                raise AssertionError(member.name)
            with open(host.path(target), "wb") as out:
                shutil.copyfileobj(source, out)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(host.path(target), 0o755 if member.mode & 0o100 else 0o644)
            digests[member.name] = host.digest(target)
    # What a link leads to may come after it in the archive.
    digests.update({link[len(directory) + 1 :]: host.digest(link) for link in links})
    return digests


def install(host: Host, release: str, tarball: str) -> None:
    """Make the release's directory, which appears by one rename or not at all."""
    if not tarball or not host.exists(tarball):
        raise XpuError(
            f"The runtime's tarball {tarball or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    final = f"{xpu.VERSIONS}/{release}"
    scratch = f"{xpu.VERSIONS}/.{release}.{os.getpid()}"
    os.makedirs(host.path(scratch), mode=0o755)
    try:
        digests = _unpack(host, tarball, scratch)
        host.write(f"{scratch}/{xpu.RECORD}", xpu.render_record(digests))
        os.chmod(host.path(scratch), 0o755)
        if host.exists(final):
            # An altered release: containers that have its files mounted keep them open.
            os.rename(host.path(final), host.path(f"{scratch}.altered"))
        os.rename(host.path(scratch), host.path(final))
    finally:
        shutil.rmtree(host.path(scratch), ignore_errors=True)
        shutil.rmtree(host.path(f"{scratch}.altered"), ignore_errors=True)


def switch(host: Host, release: str) -> None:
    host.point(xpu.CURRENT, f"versions/{release}")
    for path, target in xpu.LINKS.items():
        if host.link(path) != target:
            host.point(path, target)


def own(host: Host) -> None:
    """From here on client-update keeps its hands off."""
    if (host.read(xpu.OWNER) or "").strip() != xpu.COMPONENT:
        host.write(xpu.OWNER, f"{xpu.COMPONENT}\n")


def label(host: Host, facts: xpu.Facts) -> None:
    """Containers read these files, and with SELinux only what is labelled for them."""
    if not facts.selinux.on:
        return
    if selinux.is_due(facts.selinux):
        records.write(host, xpu.COMPONENT, {"selinux": selinux.pattern(xpu.HOME)})
        selinux.add_rule(host, xpu.HOME)
    selinux.relabel(host, xpu.HOME)


def unlabel(host: Host, facts: xpu.Facts) -> None:
    """Only a rule that we made; noted before it was, so it may not be there."""
    if records.read(host, xpu.COMPONENT) and facts.selinux.rule:
        selinux.remove_rule(host, xpu.HOME)
    records.write(host, xpu.COMPONENT, {})


@contextlib.contextmanager
def locked(host: Host) -> t.Iterator[None]:
    """Nobody else changes the directory meanwhile: client-update holds the same lock."""
    os.makedirs(host.path(xpu.HOME), mode=0o755, exist_ok=True)
    handle = os.open(host.path(xpu.HOME), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def uninstall(host: Host) -> None:
    for path in (*xpu.LINKS, xpu.CURRENT):
        if host.link(path):
            host.remove(path)
    shutil.rmtree(host.path(xpu.VERSIONS), ignore_errors=True)
    host.remove(xpu.OWNER)
    try:
        os.rmdir(host.path(xpu.HOME))
    except OSError:
        pass  # not there, or holding what is not ours


def _describe(facts: xpu.Facts) -> str:
    altered = "".join(f"altered {name}\n" for name in facts.altered)
    links = "".join(f"{path} → {target or 'absent'}\n" for path, target in facts.links.items())
    owner = f"owner {facts.owner or 'absent'}\n"
    context = f"SELinux rule {facts.selinux.rule or 'absent'}\n" if facts.selinux.on else ""
    return f"current → {facts.current or 'absent'}\n{links}{owner}{context}{altered}"


def _predict(facts: xpu.Facts, release: str, keeps_rule: bool) -> str:
    rule = facts.selinux.rule or (selinux.READ_ONLY if release else "")
    context = f"SELinux rule {rule if keeps_rule else 'absent'}\n" if facts.selinux.on else ""
    links = "".join(
        f"{path} → {target if release else 'absent'}\n" for path, target in xpu.LINKS.items()
    )
    owner = f"owner {xpu.COMPONENT if release else 'absent'}\n"
    return f"current → {release or 'absent'}\n{links}{owner}{context}"


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    release = xpu.release_name(params["version"] or "", params["sha256"] or "")
    facts = xpu.observe(host, release)
    present, record = params["state"] == "present", records.read(host, xpu.COMPONENT)
    if present:
        decision = xpu.plan(facts, release)
        if decision.action == BLOCKED:
            raise XpuError(f"The xpu runtime can't be installed: {decision.reason}.", "see above.")
        changed = decision.action != OK
    else:
        changed = host.exists(xpu.VERSIONS) or bool(facts.current or facts.owner or record)
    if changed and not check:
        with locked(host):
            if not present:
                uninstall(host)
                unlabel(host, facts)
            else:
                # Asked again: client-update may have had the lock before us.
                facts = xpu.observe(host, release)
                if facts.altered or not facts.recorded:
                    install(host, release, params["tarball"] or "")
                own(host)
                label(host, facts)
                switch(host, release)
    keeps_rule = present or (bool(facts.selinux.rule) and not record)
    after = _predict(facts, release if present else "", keeps_rule) if changed else _describe(facts)
    return {
        "changed": changed,
        "directory": f"{xpu.VERSIONS}/{release}",
        "diff": {"before": _describe(facts), "after": after},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str"},
            "sha256": {"type": "str"},
            "tarball": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("version", "sha256"))],
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
