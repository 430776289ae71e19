# SPDX-License-Identifier: GPL-3.0-or-later
"""Slices of a host without Kubernetes: registered, used by Docker, kept over a reboot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e import snapshot
from e2e.nodeplay import ROOT, Run, look, play, role
from testbed import artefacts, up
from testbed.hosts import Completed, Host, Testbed
from testbed.suite import fresh_hosts
from xpubuild import debian
from xpubuild.cache import Cache
from xpubuild.recipes import images

TOPOLOGY = ROOT / "tests/testbed/topologies/host-slices.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-slices"
WORKLOAD = ROOT / "tests/e2e/workload/gpu_load.py"
WORKLOAD_ON_HOST = "/root/gpu_load.py"
UNIT = "xpu-agent.service"
PROGRAM = "/usr/local/bin/gpu-device-plugin"
# In the order of installation.
ROLES = ("nvidia_driver", "container_toolkit", "container_runtime", "xpu_runtime", "xpu_agent")
PATIENCE_S = 120.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with fresh_hosts(TOPOLOGY, NAME) as made:
        yield made


@pytest.fixture(scope="module")
def variables() -> dict[str, object]:
    """Of what `make artefacts` makes, and made before this suite in `make test-integration`."""
    directory = ROOT / "build/artefacts"
    if not (directory / "manifest.yml").exists():
        artefacts.publish_all(directory)
    return {
        "flexai_manifest": str(directory / "manifest.yml"),
        "container_runtime_engine": "docker",
    }


@pytest.fixture(scope="module")
def host(testbed: Testbed) -> Host:
    return testbed.host("dock1")


def vgpu(**options: object) -> dict[str, object]:
    return {"flexai.xpu.vgpu": {"name": "train", **options}}


def run(tmp_path: Path, host: Host, *tasks: dict[str, object], **more: object) -> Run:
    return play(tmp_path, host, list(tasks), **more)


def changed(done: Run, times: int) -> bool:
    return done.rc == 0 and f"changed={times}" in done.output


def listing(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        host.exec([PROGRAM, "slice", "list", "--output=json"]).stdout
    )
    return found


def start_tenant(host: Host, slice_: str) -> None:
    """As Docker before 25 takes a CDI device: NVIDIA's runtime reads it off a mount."""
    device = f"/var/run/nvidia-container-devices/cdi/huawei.com/vgpu/{slice_}"
    host.exec(
        ["docker", "run", "--detach", "--name=tenant", "--runtime=nvidia-cdi", "--network=none"]
        + ["--volume", f"/dev/null:{device}", "--volume", f"{WORKLOAD_ON_HOST}:/load.py:ro"]
        + ["debian:test", "python3", "/load.py", "serve"]
    )
    until("the tenant runs", lambda: ask(host, "state").rc == 0)


def ask(host: Host, *words: str) -> Completed:
    return host.exec(
        ["docker", "exec", "tenant", "python3", "/load.py", "ask", *words], check=False
    )


def in_tenant(host: Host, script: str) -> str:
    return host.exec(["docker", "exec", "tenant", "sh", "-c", script]).stdout.strip()


def until(what: str, holds: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def before(host: Host) -> snapshot.Snapshot:
    return look(host)


@pytest.fixture(scope="module")
def ready(
    host: Host,
    variables: dict[str, object],
    before: snapshot.Snapshot,
    tmp_path_factory: pytest.TempPathFactory,
) -> Host:
    """The host with everything that slices need, and an image."""
    roles = [role(name) for name in ROLES]
    done = run(tmp_path_factory.mktemp("roles"), host, *roles, **variables)
    assert done.rc == 0, done.output
    host.put(WORKLOAD_ON_HOST, WORKLOAD)
    rootfs = debian.rootfs(Cache(), images.BASE_SUITE, images.BASE_PACKAGES)
    host.put("/root/rootfs.tar", rootfs)
    host.exec(["docker", "import", "/root/rootfs.tar", "debian:test"], timeout=300)
    host.exec(["rm", "/root/rootfs.tar"])
    return host


def test_a_slice_is_registered_used_resized_and_given_back(
    tmp_path: Path, ready: Host, variables: dict[str, object]
) -> None:
    host = ready
    # 0 is all that systemd can take from a unit, 100 nothing; this one is root and reads processes.
    host.exec(["systemd-analyze", "security", "--no-pager", "--threshold=50", UNIT])
    present = vgpu(cores=20, memory_mib=3072)
    predicted = {**present, "check_mode": True}
    still_none: dict[str, object] = {
        "flexai.xpu.vgpu_info": {},
        "register": "found",
        "failed_when": "found.slices | length > 0",
    }
    validate = role("xpu_agent", "validate")
    tasks = [validate, predicted, still_none, present, present, predicted]
    done = run(tmp_path, host, *tasks, **variables)
    assert changed(done, 2), done.output  # the first prediction, and what it predicted

    # A container has exactly its slice.
    start_tenant(host, "train")
    slice_ = listing(host)["slices"][0]
    assert (slice_["state"], slice_["cores_percent"]) == ("ready", 20)
    assert in_tenant(host, "cat /etc/xpu/vgpu.config").split() == ["UsedMem:3072", "UsedCores:20"]
    assert in_tenant(host, "ls /dev | grep -c '^nvidia[0-9]'") == "1"
    assert slice_["card"] in in_tenant(host, "nvidia-smi -L")
    assert json.loads(ask(host, "state").stdout)["memory_total"] == 3072 << 20
    refused = ask(host, "allocate", "4GiB")
    assert refused.rc == 1 and "OUT_OF_MEMORY" in refused.stdout, refused
    assert len(slice_["use"]["containers"]) == 1

    # It grows while the container runs.
    done = run(tmp_path, host, vgpu(memory_mib=6144, cores=40), **variables)
    assert changed(done, 1), done.output
    grown = ask(host, "allocate", "4GiB")
    assert grown.rc == 0, grown

    # What a container holds isn't taken, and what isn't there isn't promised.
    refused_tasks: list[dict[str, object]] = [
        {**task, "ignore_errors": True}
        for task in (
            vgpu(memory_mib=1024),
            vgpu(state="absent"),
            vgpu(name="more", card=slice_["card"], cores=70),
        )
    ]
    done = run(tmp_path, host, *refused_tasks, **variables)
    assert changed(done, 0) and "ignored=3" in done.output, done.output
    for words in ("shrink to 1024 MiB", "slice train is in use by", "60 % cores", "no room"):
        assert words in done.output, done.output

    host.exec(["docker", "rm", "--force", "tenant"])
    absent = vgpu(state="absent")
    done = run(tmp_path, host, absent, absent, **variables)
    assert changed(done, 1), done.output


@pytest.mark.soak
def test_a_slice_outlives_a_reboot(
    tmp_path: Path, ready: Host, variables: dict[str, object]
) -> None:
    host = ready
    done = run(tmp_path, host, vgpu(name="lasting", cores=50, memory_mib=2048), **variables)
    assert done.rc == 0, done.output
    up.reboot(host)
    until(
        "the agent runs", lambda: host.exec(["systemctl", "is-active", UNIT], check=False).rc == 0
    )
    until("Docker runs", lambda: host.exec(["docker", "info"], check=False).rc == 0)
    assert [slice_["state"] for slice_ in listing(host)["slices"]] == ["ready"]
    start_tenant(host, "lasting")
    assert json.loads(ask(host, "state").stdout)["memory_total"] == 2048 << 20
    host.exec(["docker", "rm", "--force", "tenant"])


def test_the_agent_goes_when_no_slice_is_left(
    tmp_path: Path, ready: Host, variables: dict[str, object], before: snapshot.Snapshot
) -> None:
    host = ready
    lasting = vgpu(name="lasting", cores=50, memory_mib=2048)
    done = run(tmp_path, host, lasting, role("xpu_agent", "uninstall"), **variables)
    assert done.rc != 0 and "slices of the host itself are registered: lasting" in done.output
    assert host.exec(["systemctl", "is-active", UNIT]).rc == 0
    way_back = [role(name, "uninstall") for name in reversed(ROLES)]
    done = run(tmp_path, host, vgpu(name="lasting", state="absent"), *way_back, **variables)
    assert done.rc == 0, done.output
    host.exec(["docker", "rmi", "debian:test"])
    host.exec(["rm", WORKLOAD_ON_HOST])
    assert snapshot.differences(before, look(host)) == []
