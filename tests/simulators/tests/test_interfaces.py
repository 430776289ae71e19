# SPDX-License-Identifier: GPL-3.0-or-later
"""What programs see: ways to a function, visible cards, NVML, nvidia-smi, errors."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulators.simnode import Node
from simulators.tests.harness import TENANT, Tenant, environment, ledger, queue_up, reading

MIB = 1 << 20
WINDOW_US = 166_667
Start = Callable[..., Tenant]


def ask(
    node: Node, *words: str, **more: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """One tenant to its end, and what it said."""
    done = subprocess.run(
        [*TENANT, *words],
        env={**environment(node), **more},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, json.loads(done.stdout.splitlines()[0])


def test_every_way_to_a_function_ends_at_the_same_one(node: Node, tenant: Start) -> None:
    rows = tenant(node, "paths").says()["rows"]
    assert rows == dict.fromkeys(rows, True)


def test_a_process_sees_the_cards_whose_device_node_exists(
    node_of: Callable[..., Node],
) -> None:
    node = node_of("a100-40g", "t4")
    assert [card["major"] for card in ask(node, "devices")[1]["seen"]] == [8, 7]
    (node.directory / "dev/nvidia0").unlink()
    assert [card["major"] for card in ask(node, "devices")[1]["seen"]] == [7]
    assert node.run("nvidia-smi", "-L") == f"GPU 0: Tesla T4 (UUID: {node.uuids[1]})\n"
    (node.directory / "dev/nvidia1").unlink()
    assert ask(node, "devices")[1]["code"] == 100  # CUDA_ERROR_NO_DEVICE


@pytest.mark.parametrize(
    ("wanted", "majors"),
    [("0,1", [8, 7]), ("1", [7]), ("1,0", [7, 8]), ("1,9,0", [7]), ("GPU-51000000", [8])],
)
def test_cuda_visible_devices(node_of: Callable[..., Node], wanted: str, majors: list[int]) -> None:
    seen = ask(node_of("a100-40g", "t4"), "devices", CUDA_VISIBLE_DEVICES=wanted)[1]["seen"]
    assert [card["major"] for card in seen] == majors


def test_without_the_daemon_the_error_names_socket_and_remedy(node: Node) -> None:
    done, said = ask(node, "devices", SIMGPU_SOCKET="/nonexistent/socket")
    assert said["code"] == 802  # CUDA_ERROR_SYSTEM_NOT_READY
    assert done.stderr == (
        "libcuda (simulated): cannot connect to /nonexistent/socket: No such file or directory; "
        "is the simulated persistence daemon running there?\n"
    )


def test_a_library_of_another_version_than_the_module_is_refused(
    node: Node, tmp_path: Path
) -> None:
    """As after an upgrade without a reboot."""
    other = tmp_path / "driver"
    shutil.copytree(node.driver, other, symlinks=True)
    for name, soname in (("libcuda", "libcuda.so.1"), ("libnvidia-ml", "libnvidia-ml.so.1")):
        (library,) = (other / "lib").glob(f"{name}.so.*.*")
        library.rename(other / "lib" / f"{name}.so.535.183.06")
        (other / "lib" / soname).unlink()
        (other / "lib" / soname).symlink_to(f"{name}.so.535.183.06")
    upgraded = replace(node, driver=other)
    assert ask(upgraded, "devices")[1]["code"] == 803  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
    done = subprocess.run(
        ["nvidia-smi"],
        env=environment(upgraded),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 18 and "Driver/library version mismatch" in done.stdout


def test_a_bad_card_is_named_by_the_daemon(node: Node, tmp_path: Path) -> None:
    card = node.directory / "pci/0000:3b:00.0/simgpu"
    text = card.read_text()
    elsewhere = {**environment(node), "SIMGPU_SOCKET": str(tmp_path / "s")}
    for wrong, wanted in (
        (text.replace("a100-40g", "voodoo"), "profiles/voodoo.conf"),
        (text.replace("uuid", "name"), "0000:3b:00.0/simgpu: no line 'uuid …'"),
        ("profile\n", "simgpu:1: 'profile' has no value"),
    ):
        card.write_text(wrong)
        done = subprocess.run(
            [node.driver / "bin/nvidia-persistenced", "--foreground"],
            env=elsewhere,
            capture_output=True,
            text=True,
            timeout=10,
        )
        assert done.returncode == 1 and wanted in done.stderr


def test_nvidia_smi_and_the_ledger_agree(node: Node, tenant: Start) -> None:
    one = tenant(node, "hold", 3072)
    one.says()
    (entry,) = ledger(node)
    assert entry["pid"] == entry["host_pid"] == one.process.pid
    query = ["nvidia-smi", "--query-gpu=index,name,uuid,memory.total,memory.used"]
    used = entry["memory_bytes"] // MIB + 624
    line = f"0, NVIDIA A100-PCIE-40GB, {node.uuids[0]}, 40960 MiB, {used} MiB\n"
    header = "index, name, uuid, memory.total [MiB], memory.used [MiB]\n"
    assert node.run(*query, "--format=csv") == header + line
    assert node.run(*query, "--format=csv,noheader,nounits") == line.replace(" MiB", "")
    table = node.run("nvidia-smi")
    assert "simulated: these cards exist only in tests\n" in table
    assert f"{one.process.pid}" in table and "3486MiB" in table
    widths = {len(line) for line in table.splitlines() if line[0] in "|+"}
    assert len(widths) == 1


class Sample(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("time", ctypes.c_ulonglong),
        ("sm", ctypes.c_uint),
        ("mem", ctypes.c_uint),
        ("enc", ctypes.c_uint),
        ("dec", ctypes.c_uint),
    )


class Nvml:
    """NVML by ctypes in this process."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in node.environment.items():
            monkeypatch.setenv(name, value)
        self.library = ctypes.CDLL(str(node.driver / "lib/libnvidia-ml.so.1"))
        assert self.library.nvmlInit_v2() == 0
        self.device = ctypes.c_void_p()
        assert self.library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.device)) == 0

    def samples(self, since: int) -> tuple[int, list[Sample]]:
        room = (Sample * 16)()
        count = ctypes.c_uint(16)
        code = self.library.nvmlDeviceGetProcessUtilization(
            self.device, room, ctypes.byref(count), ctypes.c_ulonglong(since)
        )
        return code, list(room)[: count.value] if code == 0 else []

    def close(self) -> None:
        assert self.library.nvmlShutdown() == 0


def test_nvml_samples_are_whole_percents_of_windows_seen_once(
    node: Node, tenant: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(node, monkeypatch)
    assert nvml.samples(0)[0] == 6  # NVML_ERROR_NOT_FOUND
    pair = [tenant(node, "backlog", 10_000_000, 500) for _ in range(2)]
    pids = queue_up(pair)
    start = reading(node)["monotonic_ns"]
    # Two whole windows later the latest complete one has seen nothing but these two.
    while reading(node)["monotonic_ns"] < start + 2 * WINDOW_US * 1000:
        time.sleep(0.02)
    before = time.time() * 1e6
    code, first = nvml.samples(0)
    assert code == 0
    assert sorted(sample.pid for sample in first) == sorted(pids)
    # Of 83 slices in a window one may have one more.
    assert all(48 <= sample.sm <= 51 for sample in first)
    # The latest complete window: it ended at most one window before the question.
    assert all(before - WINDOW_US - 1000 <= one.time <= time.time() * 1e6 for one in first)
    times = [max(sample.time for sample in first)]
    while len(times) < 4:
        times += [sample.time for sample in nvml.samples(times[-1])[1]][:1]
        time.sleep(0.02)
    assert times == sorted(set(times)), "a sample is given once"
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(min(step % WINDOW_US, -step % WINDOW_US) < 2000 for step in steps)
    nvml.close()


def test_nvml_lists_processes_by_their_pid_on_the_host(
    node: Node, tenant: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a pid namespace needs root")
    inside = tenant(node, "hold", 16, prefix=("unshare", "--pid", "--fork", "--kill-child"))
    assert inside.says()["pid"] == 1
    (entry,) = ledger(node)
    assert entry["pid"] == 1 and entry["host_pid"] > 1
    nvml = Nvml(node, monkeypatch)
    count = ctypes.c_uint(0)
    get = nvml.library.nvmlDeviceGetComputeRunningProcesses_v3
    assert get(nvml.device, ctypes.byref(count), None) == 7  # NVML_ERROR_INSUFFICIENT_SIZE
    infos = (ctypes.c_ulonglong * 3 * count.value)()
    assert get(nvml.device, ctypes.byref(count), infos) == 0
    assert count.value == 1
    assert infos[0][0] & 0xFFFFFFFF == entry["host_pid"]
    assert infos[0][1] == entry["memory_bytes"]
    nvml.close()


@pytest.mark.parametrize("count", [12, pytest.param(64, marks=pytest.mark.soak)])
def test_many_processes_start_at_once(node: Node, tenant: Start, count: int) -> None:
    many = [tenant(node, "hold", 2) for _ in range(count)]
    assert [one.says()["code"] for one in many] == [0] * count
    assert len(ledger(node)) == count


def test_top_shows_who_uses_which_card_now(node_of: Callable[..., Node], tenant: Start) -> None:
    node = node_of("a100-40g", "t4")
    busy = tenant(node, "backlog", 10_000_000, 1000)
    queue_up([busy])
    first, second = json.loads(node.run("simgpu", "top", "--json", "-n", "0.2"))["cards"]
    assert (first["uuid"], second["uuid"]) == node.uuids
    # Its work is all in the card's queue, so the card had not a moment to spare.
    assert first["percent"] == first["processes"][0]["percent"] == 100
    assert [one["host_pid"] for one in first["processes"]] == [busy.process.pid]
    assert (
        first["used_bytes"]
        == first["processes"][0]["memory_bytes"]
        == ledger(node)[0]["memory_bytes"]
    )
    assert (second["percent"], second["processes"]) == (0, [])
    table = node.run("simgpu", "top", "--once", "-n", "0.05")
    assert f"{busy.process.pid}    100.0" in table and "Tesla T4" in table and "idle" in table


@pytest.mark.parametrize("words", [("top", "-n", "0"), ("top", "-n"), ("top", "--dead"), ("tap",)])
def test_simgpu_says_how_it_is_used(node: Node, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [node.driver / "bin/simgpu", *words], env=environment(node), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("usage: simgpu ledger")
