# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit
short_description: Install a version of the CUDA toolkit, without its driver
version_added: 0.1.0
description:
  - Runs NVIDIA's C(.run) file with C(--silent --toolkit), or asks the package manager for the
    package of the release from the site's own repositories.
  - Each release has a directory of its own, C(/usr/local/cuda-12.2). A toolkit there that somebody
    else installed is used where it is the wanted version, and refused where it is another.
  - A version of ours gives way to the wanted one; C(/usr/local/cuda) leads to it unless the site
    has made it lead elsewhere.
options:
  version:
    description: Version that shall be there, for example V(12.2.0).
    type: str
    required: true
  method:
    description: Whether the C(.run) file or packages are used.
    type: str
    choices: [run, packages]
    default: run
  installer:
    description: Path of the C(.run) file on the host; needed when it must run.
    type: path
  state:
    description: V(absent) takes away what this module installed; the site's own stays and is named.
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
- name: Install the CUDA toolkit of document 000
  flexai.xpu.cuda_toolkit:
    version: 12.2.0
    installer: "{{ toolkit.path }}"
"""

RETURN = r"""
left:
  description: What was not removed since it is not ours.
  returned: success
  type: list
  elements: str
"""

import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _cuda_toolkit as cuda
from ..module_utils import _packages as packages
from ..module_utils import _records as records
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

INSTALL_LIMIT_S = 3600
LOG = "/var/log/cuda-installer.log"
LDCONFIG_LIMIT_S = 300


def _installed(host: Host) -> packages.Packages:
    return packages.observe(host, host.read(packages.DPKG_STATUS) or "", ("cuda",))


def _note(host: Host, **values: t.Any) -> None:
    """Our record with *values* in it, without what is empty."""
    record = {**records.read(host, cuda.RECORD), **values}
    records.write(host, cuda.RECORD, {name: value for name, value in record.items() if value})


def _wanted_link(facts: cuda.Facts, version: str) -> str:
    """A link that the site has made lead elsewhere is the site's."""
    own = facts.link in ("", cuda.home(facts.recorded or version))
    return cuda.home(version) if own else facts.link


# -- install ---------------------------------------------------------------------------------


def _by_run(host: Host, version: str, installer: str) -> None:
    if not installer or not host.exists(installer):
        raise XpuError(
            f"The installer {installer or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    # Through sh, so that a cache mounted noexec does no harm.
    argv = ["sh", host.path(installer), *cuda.installer_flags(version)]
    done = host.run(argv, timeout_s=INSTALL_LIMIT_S)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-800:]
        raise XpuError(
            f"{' '.join(argv)} ended with rc {done.rc}: {tail}.",
            f"read {LOG} on the host, mend what it names, and run this again.",
        )


def _by_packages(host: Host, version: str) -> None:
    before = packages.everything(host)
    argv = cuda.package_argv(before.manager, version)
    try:
        packages.must(
            host,
            argv,
            INSTALL_LIMIT_S,
            "give the host a repository that has it, or take method run.",
        )
    finally:
        # What came with it, dependencies too, is ours; noted also where it came in part.
        came = packages.everything(host).versions.keys() - before.versions.keys()
        _note(host, packages=sorted({*records.read(host, cuda.RECORD).get("packages", ()), *came}))


def install(host: Host, facts: cuda.Facts, params: t.Mapping[str, t.Any]) -> None:
    version = params["version"]
    link = _wanted_link(facts, version)
    former = dict(facts.record)
    former_link = former.get("former_link") if former else facts.link
    if cuda.is_ours(facts, version):
        remove(host, facts)  # the wanted version takes the same directory
        former = {}
    # The former one's packages are in its own record.
    begun = {"version": version, "state": cuda.INSTALLING, "packages": None}
    _note(host, **begun, former=former, former_link=former_link)
    if params["method"] == "run":
        _by_run(host, version, params["installer"] or "")
    else:
        _by_packages(host, version)
    found = cuda.version_in(host.read(f"{cuda.home(version)}/version.json"))
    if found != version:
        raise XpuError(
            f"The installer ended well, but {cuda.home(version)} holds CUDA toolkit "
            f"{found or '(none)'}, not {version}.",
            "check that artefact or repository is of the version it says.",
        )
    if former:
        _remove_files(host, former)
    if host.link(cuda.LINK) != link:
        host.point(cuda.LINK, link)  # the installer takes it for itself
    _note(host, state=cuda.INSTALLED, former=None)


# -- remove ----------------------------------------------------------------------------------


def _remove_files(host: Host, record: t.Mapping[str, t.Any]) -> None:
    """What an installation of ours brought; its own uninstaller asks questions."""
    version = str(record["version"])
    if record.get("packages"):
        manager = _installed(host).manager
        argv = packages.removal_argv(manager, record["packages"])
        packages.must(host, argv, INSTALL_LIMIT_S, "mend the package system and run again.")
    shutil.rmtree(host.path(cuda.home(version)), ignore_errors=True)
    host.remove(cuda.linker_file(version))


def remove(host: Host, facts: cuda.Facts) -> None:
    """Back to what was before us; an installation that broke off may have left two of ours."""
    for record in (facts.record, facts.record.get("former")):
        if record:
            _remove_files(host, record)
    if host.link(cuda.LINK) == cuda.home(facts.recorded):
        former = str(facts.record.get("former_link") or "")
        host.point(cuda.LINK, former) if former else host.remove(cuda.LINK)
    host.run(["ldconfig"], timeout_s=LDCONFIG_LIMIT_S)
    records.write(host, cuda.RECORD, {})


def _state(version: str, link: str) -> str:
    return f"CUDA toolkit {version or 'absent'}\n{cuda.LINK} → {link or 'absent'}\n"


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    version, present = params["version"], params["state"] == "present"
    facts = cuda.observe(host, _installed(host), version)
    before = _state(facts.version, facts.link)
    left: list[str] = []
    if present:
        decision = cuda.plan(facts, version)
        if decision.action == BLOCKED:
            raise XpuError(f"The CUDA toolkit can't be installed: {decision.reason}.", "see above.")
        changed = decision.action != OK
        after = _state(version, _wanted_link(facts, version))
    else:
        changed = bool(facts.recorded)
        after = _state("", str(facts.record.get("former_link") or ""))
        if facts.version and not cuda.is_ours(facts, version):
            left = [f"CUDA toolkit {facts.version}: not installed by flexai.xpu"]
    if changed and not check:
        if present:
            install(host, facts, params)
        else:
            remove(host, facts)
    return {
        "changed": changed,
        "left": left,
        "diff": {"before": before, "after": after if changed else before},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str", "required": True},
            "method": {"type": "str", "choices": ["run", "packages"], "default": "run"},
            "installer": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
