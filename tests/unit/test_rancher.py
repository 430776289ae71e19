# SPDX-License-Identifier: GPL-3.0-or-later
"""K3s and RKE2 register NVIDIA's runtimes themselves: found, judged, and never written over."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _rancher as rancher
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge
from ansible_collections.flexai.xpu.plugins.module_utils._plan import observe, plan
from ansible_collections.flexai.xpu.plugins.modules import containerd_runtime

from . import hostroot
from .test_playbooks import files

# As the template of K3s renders it, format 2 (containerd 1.7) and 3 (containerd 2).
HEAD = {
    2: 'version = 2\n\n[plugins."io.containerd.grpc.v1.cri"]\n  enable_selinux = false\n',
    3: "version = 3\n\n[plugins.'io.containerd.cri.v1.runtime']\n  enable_selinux = false\n",
}
RUNTIME = {
    2: """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes."{name}"]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes."{name}".options]
  BinaryName = "{program}"
  SystemdCgroup = true
""",
    3: """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'{name}']
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'{name}'.options]
  BinaryName = "{program}"
  SystemdCgroup = true
""",
}
NVIDIA = "/usr/bin/nvidia-container-runtime"
BOTH = {"nvidia": NVIDIA, "nvidia-cdi": f"{NVIDIA}.cdi"}
OPERATOR = "/usr/local/nvidia/toolkit/nvidia-container-runtime"


def node(root: Path, home: str, version: int, programs: dict[str, str]) -> Host:
    """A host without a containerd of its own."""
    hostroot.bare(root)
    hostroot.install_toolkit(root)
    (root / "usr/bin/containerd").unlink()
    text = HEAD[version] + "".join(
        RUNTIME[version].format(name=name, program=program) for name, program in programs.items()
    )
    hostroot.put(root, f"{home}/agent/etc/containerd/config.toml", text)
    return Host(str(root))


CASES = {
    "both": (BOTH, "ok", "adopt", "has registered nvidia, nvidia-cdi itself", "ok"),
    "before the toolkit": (
        {},
        "ok",
        "coexist",
        "registers nvidia, nvidia-cdi itself when it starts after the container toolkit",
        "absent",
    ),
    "of an older version": (
        {"nvidia": NVIDIA},
        "ok",
        "coexist",
        "a version that doesn't know nvidia-cdi needs it in",
        "failed",
    ),
    "gpu-operator's": (
        {"nvidia": OPERATOR},
        "blocked",
        "refuse",
        f"defines runtime nvidia as {OPERATOR}",
        "absent",
    ),
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", rancher.HOMES)
@pytest.mark.parametrize("case", CASES)
def test_what_it_has_registered_is_used_and_what_it_lacks_is_said(
    case: str, name: str, version: int, tmp_path: Path
) -> None:
    programs, action, stance, reason, state = CASES[case]
    host = node(tmp_path, rancher.HOMES[name], version, programs)
    desired = hostroot.desired()
    (step,) = (
        step
        for step in plan(observe(host, desired), desired)
        if step.component == "container_runtime"
    )
    assert (step.action, step.stance) == (action, stance)
    assert reason in step.reason
    verdict = judge(host, "h", {"container_runtime": "containerd"}, {})
    assert verdict["components"][0]["state"] == state


@pytest.mark.parametrize("state", ["present", "absent"])
def test_nothing_is_written_there(state: str, tmp_path: Path) -> None:
    host = node(tmp_path, rancher.HOMES["k3s"], 2, BOTH)
    before = files(tmp_path)
    assert not containerd_runtime.converge(host, {"state": state}, check=False)["changed"]
    assert files(tmp_path) == before
