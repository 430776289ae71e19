# SPDX-License-Identifier: GPL-3.0-or-later
"""A bare host with two 910B3 becomes one with driver, firmware and CANN 8.1.RC1, and bare again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.ascend.installers import packs
from testbed.hosts import Host, Testbed
from testbed.recipes import ascend
from testbed.suite import fresh_hosts
from xpubuild import artefacts
from xpubuild.cache import Cache

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "tests/testbed/topologies/ascend.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-ascend"
BIN = Path(sys.executable).parent
LICENCE = "stand-in for the vendor's file, made by tests/simulators"
STATE = (
    "/usr/local/Ascend/driver/version.info",
    "/usr/local/Ascend/firmware/version.info",
    "/etc/ascend_install.info",
    "/etc/Ascend/ascend_cann_install.info",
    "/usr/local/Ascend/ascend-toolkit/latest",
    "/var/lib/flexai-xpu/ascend_driver.json",
    "/var/lib/flexai-xpu/ascend_cann.json",
)
LAYOUTS = [{"npu": 1, "layout": ["vir10_3c_32g", "vir05_1c_16g"]}]
# A task that ran on the host, and its name. What Ansible does by itself needs no module there.
RAN = re.compile(
    r"^TASK \[(?:flexai\.xpu\.\w+ : )?(.+?)\] \**\n(?:.*\n)*?(ok|changed|skipping): ", re.M
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with fresh_hosts(TOPOLOGY, NAME) as made:
        yield made


@pytest.fixture
def host(testbed: Testbed) -> Host:
    return testbed.host("npu1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of document 001's versions, as a site's manifest names them."""
    made, out = tmp_path_factory.mktemp("packs"), tmp_path_factory.mktemp("artefacts")
    packages = {
        ("ascend-driver-910b", packs.DRIVER, "x86_64"): packs.driver(ascend.build(Cache()), made),
        ("ascend-firmware-910b", packs.FIRMWARE, "noarch"): packs.firmware(made),
        ("ascend-cann-toolkit", packs.CANN, "x86_64"): packs.cann("toolkit", made),
        ("ascend-cann-kernels-910b", packs.CANN, "x86_64"): packs.cann("kernels", made),
        ("ascend-cann-nnal", packs.CANN, "x86_64"): packs.cann("nnal", made),
    }
    entries = [
        artefacts.Artefact(name, version, arch, "run", path, LICENCE)
        for (name, version, arch), path in packages.items()
    ]
    artefacts.publish(entries, out)
    return out / "manifest.yml"


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "FLEXAI_TESTBED": NAME,
    }
    return subprocess.run(
        [str(word) for word in argv],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def play(
    manifest: Path, *flags: str, what: str | Path = "flexai.xpu.ascend", **variables: object
) -> subprocess.CompletedProcess[str]:
    said = json.dumps({"flexai_manifest": str(manifest), **variables})
    inventory = ROOT / "inventories/sandbox/testbed.yml"
    return run(BIN / "ansible-playbook", "-i", inventory, "-e", said, *flags, what)


def there(host: Host) -> list[str]:
    return [path for path in STATE if host.exec(["test", "-e", path], check=False).rc == 0]


def ran(output: str) -> list[str]:
    return [name for name, how in RAN.findall(output) if how != "skipping"]


def test_the_host_is_bare_and_a_prediction_leaves_it_so(host: Host, manifest: Path) -> None:
    done = play(manifest, "--check", "--diff")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "+driver 25.0.rc1.1" in done.stdout
    assert "+kernels 8.1.RC1" in done.stdout
    assert there(host) == []


def test_without_leave_to_reboot_it_says_that_one_is_due(host: Host, manifest: Path) -> None:
    done = play(manifest)
    assert done.returncode != 0
    assert "npu1 is not ready: a reboot is due" in done.stdout
    assert there(host) == list(STATE)
    boot = host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    done = play(manifest, ascend_driver_reboot=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "npu1 is ready" in done.stdout
    assert host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot
    assert host.exec(["npu-smi", "info"]).stdout.count("910B3") == 2


def test_a_second_run_takes_one_module(host: Host, manifest: Path) -> None:
    done = play(manifest)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed=0" in done.stdout
    # The others assert on the controller.
    assert ran(done.stdout) == [
        "Look at the host",
        "Stop before any change where something stands in the way",
        "Judge",
    ]


def test_chips_are_divided_as_the_site_says(host: Host, manifest: Path) -> None:
    done = play(manifest, ascend_vnpu_layouts=LAYOUTS)
    assert done.returncode == 0, done.stdout[-4000:]
    told = host.exec(["npu-smi", "info", "-t", "info-vnpu", "-i", "1", "-c", "0"]).stdout
    assert "Total number of vnpu: 2" in told
    assert "changed=0" in play(manifest, ascend_vnpu_layouts=LAYOUTS).stdout


@pytest.mark.parametrize("role", ["ascend_driver", "ascend_cann", "ascend_vnpu"])
@pytest.mark.parametrize("step", ["utils/converge.yml", "{role}/verify.yml"])
def test_molecule(
    host: Host, manifest: Path, role: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The playbooks of the roles' scenarios, which the demo has no host for."""
    monkeypatch.setenv("MOLECULE_SCENARIO_NAME", role)
    monkeypatch.setenv("MOLECULE_HOSTS", "flexai_ascend")
    file = ROOT / "extensions/molecule" / step.format(role=role)
    done = play(manifest, what=file, ascend_vnpu_layouts=LAYOUTS)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"ok=[1-9]\d* +changed=0", done.stdout), done.stdout[-4000:]


def test_a_driver_that_does_not_answer_is_in_the_verdict(host: Host, manifest: Path) -> None:
    host.exec(["systemctl", "stop", "npu-sim.service"])
    done = play(manifest)
    host.exec(["systemctl", "start", "npu-sim.service"])
    assert done.returncode != 0
    assert "npu1 is not ready: `npu-smi info`: DCMI can't be initialised (-8005)" in done.stdout


def test_uninstalled_it_is_bare_again(host: Host, manifest: Path, tmp_path: Path) -> None:
    tasks = [
        {
            "ansible.builtin.include_role": {
                "name": f"flexai.xpu.{role}",
                "tasks_from": "uninstall",
            }
        }
        for role in ("ascend_vnpu", "ascend_cann", "ascend_driver")
    ]
    file = tmp_path / "uninstall.yml"
    file.write_text(json.dumps([{"hosts": "flexai_ascend", "gather_facts": False, "tasks": tasks}]))
    done = play(manifest, what=file, ascend_vnpu_layouts=LAYOUTS)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed: [npu1] => (item=NPU 1)" in done.stdout
    assert there(host) == []
    assert "changed=0" in play(manifest, what=file).stdout
