# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: container_toolkit
short_description: Install and configure the NVIDIA container toolkit, describe cards for CDI
version_added: 0.1.0
description:
  - Installs exactly the toolkit's five packages, deb or rpm as the host takes them, out of a
    release tarball or from repositories of the host.
  - Sets a few keys of C(/etc/nvidia-container-runtime/config.toml); its other lines stay.
  - Writes C(/etc/cdi/nvidia.yaml) from C(nvidia-ctk cdi generate) when driver, toolkit or set of
    cards changed. Where no
    driver runs yet, that waits for the reboot and is said in a warning.
options:
  version:
    description: Version that shall be there.
    type: str
    required: true
  method:
    description:
      - V(tarball) installs files of the release tarball and asks no repository; V(packages) takes
        the version from repositories that the host has.
    type: str
    choices: [tarball, packages]
    default: tarball
  tarball:
    description:
      - Path of the release tarball on the host; needed when packages must be installed by
        O(method=tarball). It holds deb packages for a host with dpkg, rpm packages for another.
    type: path
  accept_envvar_unprivileged:
    description: Whether an unprivileged container may ask for cards by C(NVIDIA_VISIBLE_DEVICES).
    type: bool
    default: false
  accept_volume_mounts:
    description: Whether cards may be asked for by mounts, as slices are.
    type: bool
    default: true
  mode:
    description: Mode of the plain runtime.
    type: str
    choices: [auto, cdi, legacy]
    default: auto
  state:
    description: V(absent) purges the packages with their configuration and takes our CDI file away.
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
- name: Install the toolkit
  flexai.xpu.container_toolkit:
    version: 1.17.8
    tarball: /var/cache/flexai-xpu/nvidia-container-toolkit_1.17.8_deb_amd64.tar.gz
"""

RETURN = r"""
packages:
  description: The toolkit's packages and their versions after the run.
  returned: success
  type: dict
left:
  description: What was not removed since it is not ours.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
import tarfile
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _container_toolkit as toolkit
from ..module_utils import _nvidia_driver as driver
from ..module_utils import _packages as packages
from ..module_utils import _records as records
from ..module_utils import _repositories as repositories
from ..module_utils._decision import REFUSE
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

INSTALL_LIMIT_S = 600
REMEDY = "mend the package system (`dpkg --audit`, `dnf check`) and run again."
OURS = "# Written by flexai.xpu from"


def _extract(tarball: str, manager: str, directory: str) -> dict[str, str]:
    """The five packages of a release tarball, name → file in *directory*."""
    machine = os.uname().machine
    with tarfile.open(tarball) as archive:
        chosen = toolkit.choose_packages(archive.getnames(), manager, machine)
        missing = [name for name in toolkit.PACKAGES if name not in chosen]
        if missing:
            form = toolkit.SUFFIXES[manager].lstrip(".")
            raise XpuError(
                f"{os.path.basename(tarball)} holds no {form} of {', '.join(missing)} for "
                f"{machine}.",
                f"take the release tarball of {form} packages for this architecture.",
            )
        files = {}
        for name in toolkit.PACKAGES:
            files[name] = os.path.join(directory, os.path.basename(chosen[name]))
            source = archive.extractfile(chosen[name])
            if source is None:
                raise XpuError(f"{chosen[name]} is no plain file.", "fetch the tarball again.")
            with open(files[name], "wb") as out:
                shutil.copyfileobj(source, out)
        return files


def install_files(host: Host, manager: str, tarball: str, names: t.Collection[str]) -> None:
    """Install *names* of the tarball's packages; the others are somebody else's."""
    if not tarball or not host.exists(tarball):
        raise XpuError(
            f"The toolkit's tarball {tarball or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    scratch = tempfile.mkdtemp(prefix="flexai-toolkit-")
    try:
        files = _extract(host.path(tarball), manager, scratch)
        chosen = [file for name, file in files.items() if name in names]
        argv = packages.install_files_argv(manager, chosen)
        packages.must(host, argv, INSTALL_LIMIT_S, REMEDY)
    finally:
        shutil.rmtree(scratch)


def removal_argv(manager: str, names: t.Iterable[str]) -> list[str]:
    """dpkg alone takes away these and nothing that apt thinks has become useless with them."""
    if manager == "dpkg":
        return ["dpkg", "--purge", *sorted(names, reverse=True)]
    return packages.removal_argv(manager, sorted(names))


def generate_cdi(host: Host, basis: toolkit.CdiBasis) -> str:
    """The specification as `nvidia-ctk` sees the cards now, with the line that dates it."""
    done = host.run(["nvidia-ctk", "cdi", "generate"], timeout_s=120)
    if done.rc != 0 or "cdiVersion" not in done.out:
        raise XpuError(
            f"`nvidia-ctk cdi generate` ended with rc {done.rc}: {done.err.strip()[-800:]}.",
            "check that `nvidia-smi` answers on the host.",
        )
    return basis.header(done.out) + done.out


def look(host: Host) -> packages.Packages:
    return packages.observe(host, host.read(packages.DPKG_STATUS) or "", ("nvidia",))


class Change:
    """One run: what differs is put right, or predicted in check mode; both feed one diff."""

    def __init__(self, host: Host, params: t.Mapping[str, t.Any], check: bool) -> None:
        self.host, self.params, self.check = host, params, check
        self.manager = look(host).manager
        self.changed = False
        self.warnings: list[str] = []
        self.left: list[str] = []
        self.diff: list[dict[str, str]] = []

    def _note(self, what: str, before: str, after: str) -> None:
        self.changed = True
        self.diff.append(
            {"before_header": what, "after_header": what, "before": before, "after": after}
        )

    def packages(self, wanted: t.Mapping[str, str]) -> None:
        found = self.installed()
        if found == wanted:
            return
        self._note("packages", _lines(found), _lines(wanted))
        if self.check:
            return
        if len(wanted) == len(toolkit.PACKAGES):
            self._install([name for name in toolkit.PACKAGES if found.get(name) != wanted[name]])
        else:
            argv = removal_argv(self.manager, found.keys() - wanted.keys())
            packages.must(self.host, argv, INSTALL_LIMIT_S, REMEDY)
        after = self.installed()
        if after != wanted:
            raise XpuError(
                f"{self.manager} ended well, but the host now has "
                f"{_lines(after) or 'none of the packages'}.",
                "check that artefact or repository is of the version that it says.",
            )

    def _install(self, names: t.Sequence[str]) -> None:
        exact = []
        if self.params["method"] == toolkit.REPOSITORY:
            asked = (names, self.params["version"], toolkit.REMEDY)
            exact = repositories.resolve(self.host, self.manager, *asked)
        # Before the manager, so that packages of a run that died here are known as ours.
        self.own({*self.owned(), *names})
        if exact:
            argv = repositories.install_argv(self.manager, exact)
            packages.must(self.host, argv, INSTALL_LIMIT_S, REMEDY)
        else:
            install_files(self.host, self.manager, self.params["tarball"] or "", names)

    def owned(self) -> set[str]:
        """Packages that are ours to remove."""
        return set(records.read(self.host, toolkit.RECORD).get("packages", ()))

    def own(self, names: t.Collection[str]) -> None:
        records.write(self.host, toolkit.RECORD, {"packages": sorted(names)} if names else {})

    def installed(self) -> dict[str, str]:
        return toolkit.installed_packages(look(self.host))

    def file(self, path: str, text: str) -> None:
        before = self.host.read(path)
        if before == text:
            return
        self._note(path, before or "", text)
        if not self.check:
            self.host.write(path, text)

    def drop(self, path: str) -> None:
        before = self.host.read(path)
        if before is None:
            return
        self._note(path, before, "")
        if not self.check:
            self.host.remove(path)
            self.host.remove_empty(os.path.dirname(path))

    def purge(self) -> None:
        if (self.host.read(toolkit.CDI_FILE) or "").startswith(OURS):
            self.drop(toolkit.CDI_FILE)
        installed, owned = self.installed(), self.owned()
        original = self.host.read(toolkit.ORIGINAL_FILE)
        if original is not None:
            self.file(toolkit.CONFIG_FILE, original)
            self.drop(toolkit.ORIGINAL_FILE)
        elif installed.keys() & owned:
            # Written by a package's script, so no package owns it; before the packages, since
            # without them nobody could tell whose it is.
            self.drop(toolkit.CONFIG_FILE)
        theirs = {name: version for name, version in installed.items() if name not in owned}
        self.left = [f"package {name}: not installed by flexai.xpu" for name in sorted(theirs)]
        self.packages(theirs)
        if owned and not self.check:
            self.own(())

    def configuration(self, facts: toolkit.Facts, wanted: toolkit.Wanted) -> None:
        before = self.host.read(toolkit.CONFIG_FILE) or ""
        after = toolkit.write_settings(before, wanted.settings())
        if before == after:
            return
        kept = self.host.read(toolkit.ORIGINAL_FILE)
        if toolkit.foreign_packages(facts) and kept is None and not self.check:
            self.host.write(toolkit.ORIGINAL_FILE, before)
        self.file(toolkit.CONFIG_FILE, after)

    def cdi(self, basis: toolkit.CdiBasis) -> None:
        before = self.host.read(toolkit.CDI_FILE)
        if toolkit.cdi_is_current(before, basis):
            return
        if self.check:
            self._note(toolkit.CDI_FILE, before or "", "as `nvidia-ctk cdi generate` will say\n")
            return
        loaded = driver.loaded_version(self.host)
        if not loaded or loaded != basis.driver:
            self.warnings.append(
                f"{toolkit.CDI_FILE} waits for the reboot: kernel module {loaded or 'not loaded'}, "
                f"driver {basis.driver or 'absent'}."
            )
            return
        self.file(toolkit.CDI_FILE, generate_cdi(self.host, basis))


def _lines(packages: t.Mapping[str, str]) -> str:
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    change = Change(host, params, check)
    if params["state"] == "absent":
        change.purge()
    else:
        wanted = toolkit.Wanted(
            params["version"],
            params["accept_envvar_unprivileged"],
            params["accept_volume_mounts"],
            params["mode"],
            params["method"],
        )
        facts = toolkit.observe(host, look(host))
        claimed = toolkit.claim(facts, wanted)
        if claimed and claimed.stance == REFUSE:
            raise XpuError(f"The toolkit can't be installed: {claimed.reason}.", "see above.")
        cards = driver.cards(host)
        change.packages(dict.fromkeys(toolkit.PACKAGES, wanted.version))
        change.configuration(facts, wanted)
        installed = driver.library_version(host)
        change.cdi(toolkit.CdiBasis(installed, wanted.version, cards))
    return {
        "changed": change.changed,
        "diff": change.diff,
        "warnings": change.warnings,
        "packages": change.installed(),
        "left": change.left,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str", "required": True},
            "method": {"type": "str", "choices": ["tarball", "packages"], "default": "tarball"},
            "tarball": {"type": "path"},
            "accept_envvar_unprivileged": {"type": "bool", "default": False},
            "accept_volume_mounts": {"type": "bool", "default": True},
            "mode": {"type": "str", "choices": ["auto", "cdi", "legacy"], "default": "auto"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
