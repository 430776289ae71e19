# SPDX-License-Identifier: GPL-3.0-or-later
"""CRI-O gets our runtimes as one drop-in; what the site defines itself is adopted or refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _crio as crio
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge
from ansible_collections.flexai.xpu.plugins.module_utils._plan import choose_engine, observe, plan
from ansible_collections.flexai.xpu.plugins.modules import crio_runtime

from . import hostroot

# As nvidia-ctk and a site's own file write them; comments and another runtime between.
SITES_OWN = """\
[crio]
  [crio.runtime]
    default_runtime = "crun"
    [crio.runtime.runtimes.crun]
      runtime_path = "/usr/bin/crun"
    [crio.runtime.runtimes."nvidia"] # of the site
      runtime_path = "{program}"
      runtime_type = "oci"
    [crio.image]
      pause_image = "localhost/pause:1"
"""
NVIDIA = "/usr/bin/nvidia-container-runtime"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with CRI-O and without containerd, with the toolkit's programs."""
    root = hostroot.bare(tmp_path / "host")
    hostroot.install_toolkit(root)
    (root / "usr/bin/containerd").unlink()
    hostroot.put(root, "/var/lib/kubelet/config.yaml", "")
    hostroot.put(
        root, "/etc/crio/crio.conf", SITES_OWN.partition('    [crio.runtime.runtimes."n')[0]
    )
    said = f'#!/bin/sh\n[ "$1" = status ] || exit 1\ncat {root}/etc/crio/crio.conf '
    hostroot.put(root, "/usr/bin/crio", f"{said}{root}/etc/crio/crio.conf.d/*\nexit 0\n", 0o755)
    return Host(str(root))


def step(host: Host) -> tuple[str, str, str]:
    desired = hostroot.desired()
    (found,) = (s for s in plan(observe(host, desired), desired) if s.component == crio.COMPONENT)
    return found.action, found.stance, found.reason


def state(host: Host) -> str:
    verdict = judge(host, "h", {"container_runtime": "crio"}, {})
    found: str = verdict["components"][0]["state"]
    return found


def test_the_drop_in_is_what_cri_o_reads() -> None:
    runtimes = tomllib.loads(crio.TEXT)["crio"]["runtime"]["runtimes"]
    assert runtimes == {
        name: {"runtime_path": program, "runtime_type": "oci"}
        for name, program in crio.RUNTIMES.items()
    }


def test_absent_there_silent_and_back(host: Host) -> None:
    assert choose_engine(host, "auto") == "crio"
    assert step(host) == ("install", "", f"{crio.DROP_IN} is missing")
    assert state(host) == "absent"
    predicted = crio_runtime.converge(host, {"state": "present"}, check=True)
    assert predicted["changed"] and host.read(crio.DROP_IN) is None
    assert crio_runtime.converge(host, {"state": "present"}, check=False) == predicted
    assert step(host)[0] == "ok" and state(host) == "ok"
    assert not crio_runtime.converge(host, {"state": "present"}, check=False)["changed"]
    assert crio_runtime.converge(host, {"state": "absent"}, check=False)["changed"]
    assert host.read(crio.DROP_IN) is None
    assert not crio_runtime.converge(host, {"state": "absent"}, check=False)["changed"]


def test_an_altered_drop_in_is_put_right(host: Host) -> None:
    crio_runtime.converge(host, {"state": "present"}, check=False)
    host.write(crio.DROP_IN, crio.TEXT.replace("nvidia-cdi", "nvidia-cdj"))
    assert step(host) == ("change", "", f"{crio.DROP_IN} is altered")
    assert state(host) == "failed"
    crio_runtime.converge(host, {"state": "present"}, check=False)
    assert host.read(crio.DROP_IN) == crio.TEXT


def test_a_restart_that_was_due_is_done(host: Host) -> None:
    hostroot.put(Path(host.root), crio.SOCKET, "")
    crio_runtime.converge(host, {"state": "present"}, check=False)
    assert step(host) == (
        "change",
        "",
        "CRI-O has not been restarted since its configuration changed",
    )
    assert crio_runtime.converge(host, {"state": "present"}, check=False)["changed"]


@pytest.mark.parametrize("file", [crio.CONFIG_FILE, f"{crio.DROP_INS}/10-site.conf"])
def test_a_runtime_of_the_site_with_our_program_is_adopted(file: str, host: Host) -> None:
    hostroot.put(Path(host.root), file, SITES_OWN.format(program=NVIDIA))
    assert step(host)[:2] == ("install", "adopt")


def test_a_runtime_of_the_site_with_another_program_is_refused(host: Host) -> None:
    hostroot.put(Path(host.root), crio.CONFIG_FILE, SITES_OWN.format(program="/opt/other"))
    action, stance, reason = step(host)
    assert (action, stance) == ("blocked", "refuse")
    assert reason.startswith("CRI-O's configuration defines runtime nvidia as /opt/other")
    with pytest.raises(XpuError, match="can't be configured"):
        crio_runtime.converge(host, {"state": "present"}, check=False)
    assert host.read(crio.DROP_IN) is None


def test_without_cri_o_it_is_said(host: Host) -> None:
    (Path(host.root) / "usr/bin/crio").unlink()
    with pytest.raises(XpuError, match="/usr/bin/crio is not installed; install CRI-O first"):
        crio_runtime.converge(host, {"state": "present"}, check=False)
