# SPDX-License-Identifier: GPL-3.0-or-later
"""vNPUs: a layout is reached by the least change, never through one in use. The module runs the
simulated npu-smi on a simulated 910B3."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_smi as smi
from ansible_collections.flexai.xpu.plugins.module_utils import _flexnpu_http as http
from ansible_collections.flexai.xpu.plugins.module_utils import _vnpu as vnpu
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import vnpu as module
from ansible_collections.flexai.xpu.plugins.modules import vnpu_info
from hypothesis import given
from hypothesis import strategies as st
from simulators import simnode
from simulators.ascend import simnpu

HALF, QUARTER = "vir10_3c_32g", "vir05_1c_16g"
TEMPLATES = (smi.Template(HALF, 10, 32, 3), smi.Template(QUARTER, 5, 16, 1))


def layout(*vnpus: smi.Vnpu) -> smi.Layout:
    return smi.Layout((20, 20), (64, 64), (6, 6), vnpus)


def one(number: int, template: str, used: bool = False) -> smi.Vnpu:
    return smi.Vnpu(number, 0, "ffffffffffff", int(used), template)


names = st.lists(st.sampled_from([HALF, QUARTER]), max_size=4).filter(
    lambda found: sum(10 if name == HALF else 5 for name in found) <= 20
)


@given(there=st.lists(st.tuples(st.sampled_from([HALF, QUARTER]), st.booleans())), wanted=names)
def test_the_plan_ends_at_the_layout_and_leaves_what_is_used(
    there: list[tuple[str, bool]], wanted: list[str]
) -> None:
    vnpus = [one(100 + at, template, used) for at, (template, used) in enumerate(there)]
    used = Counter(found.template for found in vnpus if found.used)
    if used - Counter(wanted):
        with pytest.raises(XpuError, match="is in use"):
            vnpu.plan(wanted, TEMPLATES, layout(*vnpus))
        return
    change = vnpu.plan(wanted, TEMPLATES, layout(*vnpus))
    assert not any(found.used for found in change.destroy)
    kept = Counter(found.template for found in vnpus if found not in change.destroy)
    assert kept + Counter(change.create) == Counter(wanted)
    assert not {found.template for found in change.destroy} & set(change.create)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (["vir99"], "Template 'vir99' is none of this chip; it has vir10_3c_32g, vir05_1c_16g"),
        ([HALF, HALF, QUARTER], "takes 25 AI cores, and the chip has 20"),
    ],
)
def test_what_the_chip_can_not_be_divided_into(wanted: list[str], text: str) -> None:
    with pytest.raises(XpuError) as caught:
        vnpu.plan(wanted, TEMPLATES, layout())
    assert text in str(caught.value)


# -- the module, on a simulated card -------------------------------------------------------------


class Npus:
    """A host root whose npu-smi is the simulated one."""

    def __init__(self, root: Path, node: simnpu.Node) -> None:
        self.node = node
        self.tasks = '{"status": "OK", "flexnpus": []}'
        program = root / smi.PROGRAM.lstrip("/")
        program.parent.mkdir(parents=True)
        program.symlink_to(node.driver / "bin/npu-smi")
        self.orders: list[str] = []
        self.host = Host(str(root), self._run)

    def _run(self, argv: Sequence[str], timeout_s: float) -> Completed:
        if argv[1] == "set":
            self.orders.append(" ".join(argv[2:]))
        done = subprocess.run(
            argv,
            env={**os.environ, **self.node.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, str]:
        if not self.tasks:
            raise http.NobodyThere("nobody there.", "start it.")
        return 200, self.tasks

    def converge(self, *wanted: str, check: bool = False, **more: Any) -> dict[str, Any]:
        params = {"npu": 0, "chip": 0, "layout": list(wanted), "recover": None, **more}
        return module.converge(self.host, params, check, self.send)

    def refused(self, *wanted: str, **more: Any) -> str:
        with pytest.raises(XpuError) as caught:
            self.converge(*wanted, **more)
        return str(caught.value)

    def fault(self, text: str) -> None:
        (self.node.directory / "faults").write_text(text)


@pytest.fixture
def npus(tmp_path: Path) -> Iterator[Npus]:
    node = simnpu.up(tmp_path / "node", ["ascend-910b3", "ascend-910b3"])
    yield Npus(tmp_path / "root", node)
    simnode.down(tmp_path / "node")


def test_predicted_there_silent_changed_and_back(npus: Npus) -> None:
    predicted = npus.converge(HALF, QUARTER, check=True)
    assert npus.orders == []
    done = npus.converge(HALF, QUARTER)
    assert done["diff"] == predicted["diff"]
    assert done["created"] == [HALF, QUARTER]
    assert [found["id"] for found in done["vnpus"]] == [100, 101]
    assert not npus.converge(QUARTER, HALF)["changed"], "the order says nothing"
    npus.orders.clear()
    done = npus.converge(QUARTER, QUARTER)
    assert done["destroyed"] == [100]
    assert npus.orders == [
        "-t destroy-vnpu -i 0 -c 0 -v 100",
        f"-t create-vnpu -i 0 -c 0 -f {QUARTER}",
    ]
    assert npus.converge()["vnpus"] == []
    assert not npus.converge()["changed"]


def test_one_in_use_stays_and_stops_a_layout_without_it(npus: Npus) -> None:
    npus.converge(QUARTER, QUARTER)
    npus.fault("busy_vnpu 101\n")
    assert "vNPU 101 (vir05_1c_16g) would have to go, and is in use" in npus.refused()
    assert npus.converge(QUARTER)["destroyed"] == [100]


def test_recovery_is_a_setting_of_its_own(npus: Npus) -> None:
    assert not npus.converge(recover=True)["changed"]
    assert npus.converge(recover=False)["changed"]
    assert not npus.converge(recover=False)["changed"]
    assert npus.orders == ["-t vnpu-cfg-recover -d 0"]


def test_what_is_refused_before_any_change(npus: Npus) -> None:
    assert "There is no NPU 7 chip 0; npu-smi lists 0/0, 1/0" in npus.refused(HALF, npu=7)
    npus.tasks = (
        '{"status": "OK", "flexnpus": [{"flexnpu_id": "t1", "npu": 0, "chip": 0,'
        ' "aicore_alloc": 2, "memory_alloc": 1024}]}'
    )
    assert "is shared in time by flexnpud (t1)" in npus.refused(HALF)
    assert npus.converge(HALF, npu=1)["changed"], "another chip is not"
    npus.tasks = ""
    assert npus.converge(HALF)["changed"], "no daemon shares nothing"


def test_a_host_for_virtual_machines_is_told(npus: Npus) -> None:
    npus.node.run("npu-smi", "set", "-t", "vnpu-mode", "-d", "1")
    assert "`npu-smi set -t vnpu-mode -d 0`" in npus.refused(HALF)


def test_where_there_is_no_driver_nothing_is_divided(tmp_path: Path) -> None:
    bare = Host(str(tmp_path))
    params = {"npu": 0, "chip": 0, "layout": [], "recover": None}
    assert not module.converge(bare, params, False, lambda *asked: (500, ""))["changed"]
    with pytest.raises(XpuError, match="ended with rc 127"):
        module.converge(bare, {**params, "layout": [HALF]}, False, lambda *asked: (500, ""))


def test_an_unknown_table_changes_nothing(npus: Npus) -> None:
    npus.fault("unknown_table 1\n")
    with pytest.raises(XpuError, match="printed no table"):
        vnpu_info.look(npus.host)


def test_info_tells_chips_templates_and_what_is_free(npus: Npus) -> None:
    npus.converge(HALF)
    found = vnpu_info.look(npus.host)
    assert found["version"] == "25.0.rc1.1"
    first, second = found["chips"]
    assert (first["name"], first["total_mib"], first["health"]) == ("910B3", 65536, "OK")
    assert {template["name"] for template in first["templates"]} == {HALF, QUARTER}
    assert first["free"] == {"aicore": 10, "memory_gb": 32, "aicpu": 3}
    assert [made["template"] for made in first["vnpus"]] == [HALF]
    assert (second["vnpus"], second["processes"]) == ([], [])
