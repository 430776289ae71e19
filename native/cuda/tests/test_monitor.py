# SPDX-License-Identifier: Apache-2.0
"""gpu-monitor where it has nothing to show: what it says, and its exit status."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from xpu_slice import GIB, Slice


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "0"], "--period '0': must be a whole number of seconds from 1 to 86400"),
        (["-p", "86401"], "--period '86401'"),
        (["-p", "1x"], "--period '1x'"),
        (["-o", "xml"], "--output 'xml': must be table or json"),
        (["now"], "argument 'now'"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_wrong_usage(stub: Slice, arguments: list[str], says: str) -> None:
    stub.grant(memory_bytes=GIB)
    done = stub.monitor(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_help_needs_no_slice(stub: Slice) -> None:
    done = stub.monitor("--help")
    assert done.returncode == 0
    assert "exit status" in done.stdout


@pytest.mark.parametrize(
    ("damage", "status", "says"),
    [
        ("no config", 3, "config.page does not exist: this container has no slice of a GPU"),
        ("bad config", 4, "config.page does not begin with the magic number"),
        ("bad limits", 4, "vgpu.config is not two lines UsedMem:<MiB> and UsedCores:<0 to 100>"),
        ("no ids", 4, "vgpu-ids.config does not exist, though vgpu.config beside it does"),
        ("no ledger", 5, "ledger.page does not exist: without it usage is not known"),
        ("short ledger", 5, "ledger.page is shorter than its layout"),
    ],
)
def test_what_is_missing_is_named_at_once(stub: Slice, damage: str, status: int, says: str) -> None:
    stub.grant(memory_bytes=GIB)
    if damage == "no config":
        stub.config.unlink()
    elif damage == "bad config":
        stub.config.write_bytes(b"x" * 4096)
    elif damage in ("bad limits", "no ids"):
        stub.grant_upstream(memory_mib=1024, cores_percent=101 if damage == "bad limits" else 20)
        if damage == "no ids":
            stub.config.with_name("vgpu-ids.config").unlink()
    elif damage == "no ledger":
        stub.ledger_file.unlink()
    else:
        stub.ledger_file.write_bytes(b"")
    done = stub.monitor("-p", "86400")  # it does not wait a day first
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr


@pytest.mark.parametrize(
    ("policy", "says"), [("allow", "get no limits"), ("deny-new-memory", "get no device memory")]
)
def test_what_becomes_of_processes_is_said(stub: Slice, policy: str, says: str) -> None:
    stub.grant(memory_bytes=GIB)
    stub.config.write_bytes(b"x" * 4096)
    stub.config.with_name("on_error").write_text(f"{policy}\n")
    done = stub.monitor()
    assert done.returncode == 4 and says in done.stderr


def test_an_idle_slice(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, cores_percent=20)
    with ThreadPoolExecutor() as pool:  # they only wait
        table = pool.submit(stub.monitor, "-p", "1")
        shown = pool.submit(stub.monitor, "--period=1", "--output=json")
    assert table.result().stdout == (
        "vGPU num: 1\nvGPU 0 usage  0%, limit 20%, memory usage      0/3072MB\n"
    )
    assert json.loads(shown.result().stdout)["vxpus"][0]["processes"] == []


def test_a_slice_of_upstream_s_files(stub: Slice) -> None:
    stub.grant_upstream(memory_mib=3072, cores_percent=20)
    table = stub.monitor("-p", "1").stdout
    assert table == "vGPU num: 1\nvGPU 0 usage  0%, limit 20%, memory usage      0/3072MB\n"


def test_no_compute_limit_reads_as_the_whole_card(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    assert "limit 100%" in stub.monitor("-p", "1").stdout


def test_the_link_by_upstreams_other_name(stub: Slice) -> None:
    assert (stub.built / "bin" / "xpu-monitor").resolve().name == "gpu-monitor"
