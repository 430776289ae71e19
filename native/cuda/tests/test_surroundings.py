# SPDX-License-Identifier: Apache-2.0
"""Where a slice's processes live: other users, namespaces, read-only roots, seccomp, drivers and
cards that change under them. No node agent runs in any of these tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xpu_rough
from simulators import simnode
from xpu_slice import GIB, HERE, STUB_UUID, Slice, make_slice, stub_driver
from xpubuild import system
from xpubuild.cache import Cache
from xpubuild.recipes import cuda

OUT_OF_MEMORY = 2
QUOTA = 2 * GIB
NVML_SILENT = ("lost_card 0", "no such fault 1")
PROFILE = Path("/usr/share/containers/seccomp.json")  # of podman and its like
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def in_mounts(script: str) -> list[str]:
    """A prefix that runs what follows in a mount namespace, prepared by a shell script."""
    return ["unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


@pytest.fixture
def open_slice() -> Iterator[Slice]:
    """A slice that every user can reach, on the one-page driver, all in one directory."""
    directory = Path(tempfile.mkdtemp(prefix="xpu-slice-"))
    try:
        within = make_slice(directory, stub_driver(), STUB_UUID, {})
        for link in within.libraries.iterdir():
            target = link.resolve()
            link.unlink()
            shutil.copy(target, link)
        shutil.copytree(xpu_rough.programs(), directory / "bin")
        within.grant(memory_bytes=QUOTA, cores_percent=10, tau_ns=5_000_000)
        directory.chmod(0o755)
        within.ledger_file.chmod(0o666)
        yield within
    finally:
        shutil.rmtree(directory)


def crowd(
    within: Slice, prefix: list[str], processes: int, size: int
) -> tuple[Any, subprocess.Popen[str]]:
    """What each of some processes was answered, and the tenant that waits for a line."""
    words = [*prefix, str(within.directory / "bin" / "crowd"), str(processes), str(size)]
    process = within.start(words)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{words} ended with {process.wait()}"
    return json.loads(line)["granted"], process


def prefix_of(where: str, within: Slice) -> list[str]:
    here = within.directory
    return {
        "another user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        "another user without capabilities or new privileges": [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("--bounding-set=-all", "--no-new-privs"),
        ],
        "user namespace": ["unshare", "--user"],
        "user namespace as root": ["unshare", "--user", "--map-root-user"],
        "pid namespace": ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
        "no /proc": in_mounts("mount -t tmpfs tmpfs /proc"),
        "read-only root": in_mounts(f"mount --bind {here} {here}\nmount -o remount,bind,ro /"),
        "seccomp": [sys.executable, str(HERE / "seccomp.py"), str(PROFILE)],
    }[where]


@needs_root
@pytest.mark.parametrize(
    "where",
    [
        "another user",
        "another user without capabilities or new privileges",
        "user namespace",
        "user namespace as root",
        "pid namespace",
        "no /proc",
        "read-only root",
        "seccomp",
    ],
)
def test_limits_hold_and_the_ledger_is_shared(open_slice: Slice, where: str) -> None:
    if where == "seccomp" and not PROFILE.exists():
        if not system.have("apt-get"):
            pytest.skip(f"no {PROFILE} on this machine")
        system.install(["golang-github-containers-common"])
    within = open_slice
    granted, inside = crowd(within, prefix_of(where, within), 2, QUOTA // 2)
    assert granted == [0, 0]
    assert len(within.ledger().processes) == 2
    refused, outside = crowd(within, [], 1, 2 << 20)
    assert refused == [OUT_OF_MEMORY], "those inside are alive, seen from outside"
    xpu_rough.finish(outside, "\n")
    xpu_rough.finish(inside, "\n")
    assert within.ledger().cards[0].throttled_ns > 0
    granted, outside = crowd(within, [], 1, QUOTA)
    assert granted == [0], "what they held is free again"
    xpu_rough.finish(outside, "\n")


@needs_root
def test_two_pid_namespaces_with_the_same_pids(open_slice: Slice) -> None:
    within = open_slice
    prefix = prefix_of("pid namespace", within)
    first_granted, first = crowd(within, prefix, 1, QUOTA // 2)
    second_granted, second = crowd(within, prefix, 1, QUOTA // 2)
    assert first_granted == second_granted == [0]
    slots = within.ledger().processes
    # Started in one tick (10 ms) they even have the same `owner`: slot and lock tell them apart.
    assert len({slot.pid for slot in slots}) == 1 and len({slot.index for slot in slots}) == 2
    refused, third = crowd(within, prefix, 1, 2 << 20)
    assert refused == [OUT_OF_MEMORY], "neither was taken for the other, nor for dead"
    for process in (first, second, third):
        xpu_rough.finish(process, "\n")


@needs_root
@pytest.mark.parametrize("what", ["read-only", "full"])
def test_a_ledger_on_a_bad_filesystem_limits_each_process_alone(
    open_slice: Slice, what: str
) -> None:
    """Never an end by SIGBUS; the quota holds, only not over all processes together."""
    within, here = open_slice, open_slice.directory
    if what == "read-only":
        prefix = in_mounts(f"mount --bind {here} {here}\nmount -o remount,bind,ro {here}")
    else:
        prefix = in_mounts(
            f"head -c 64 {within.ledger_file} > {here}/head\n"
            f"mkdir -p {here}/small\nmount -t tmpfs -o size=64k tmpfs {here}/small\n"
            f"cp {here}/head {here}/small/ledger.page\n"
            f"truncate -s {within.ledger_file.stat().st_size} {here}/small/ledger.page\n"
            f"cat /dev/zero > {here}/small/filler || true\n"
            f"export XPU_LEDGER_PAGE={here}/small/ledger.page"
        )
    granted, process = crowd(within, prefix, 2, QUOTA)
    assert granted == [0, 0]
    xpu_rough.finish(process, "\n")
    refused, process = crowd(within, prefix, 2, QUOTA + 1)
    assert refused == [OUT_OF_MEMORY] * 2
    xpu_rough.finish(process, "\n")


@needs_root
def test_a_container_in_another_time_namespace(open_slice: Slice) -> None:
    """The limiter's clock is the container's: shifted for all alike, it limits as ever."""
    within = open_slice
    shifted = ["unshare", "--time", "--monotonic", "100000", "--boottime", "100000", "--fork"]
    granted, process = crowd(within, shifted, 2, 2 << 20)
    assert granted == [0, 0]
    xpu_rough.finish(process, "\n")
    card = within.ledger().cards[0]
    # 20 ms of work at a tenth: all but the burst and the first guesses was waited for.
    assert card.throttled_ns > 100_000_000


def test_the_library_reads_its_pages_and_nothing_else() -> None:
    """No cgroup of any version, no configuration elsewhere: where it runs makes no difference."""
    library = cuda.build(Cache()) / "lib" / "libcuda_direct.so"
    words = set(re.findall(rb"[\x20-\x7e]{4,}", library.read_bytes()))
    places = (b"/etc/", b"/run/", b"/proc/", b"/sys/", b"/dev/", b"/var/", b"/tmp/", b"/opt/")
    paths = {word.decode() for word in words if word.startswith(places)}
    assert paths == {
        "/etc/xpu/config.page",
        "/run/xpu/ledger.page",
        "/proc/self/stat",
        "/opt/xpu/lib",
    }


def progress(within: Slice) -> None:
    """The load goes on; only a hang ends this otherwise."""
    before = within.ledger().cards[0].launches
    for _ in range(6000):
        if within.ledger().cards[0].launches > before + 3:
            return
        subprocess.run(["sleep", "0.01"], check=True)
    pytest.fail("the load does not run")


def test_a_driver_upgrade_under_a_running_process(open_slice: Slice) -> None:
    """The file is gone, then new: who runs keeps the old one, who starts gets the new one."""
    within = open_slice
    program = within.directory / "bin" / "alone"
    process = within.start([program, "serve"])
    assert process.stdout is not None and json.loads(process.stdout.readline()) == {"first": 0}
    driver = within.libraries / "libcuda-original.so"
    kept = driver.with_name("kept")
    driver.rename(kept)
    progress(within)
    early = subprocess.run(
        [program, "no_memory"], env=within.environment, capture_output=True, text=True
    )
    assert early.returncode == 70 and "libcuda-original.so" in early.stderr
    shutil.copy(kept, driver.with_name("new"))
    kept.unlink()
    driver.with_name("new").rename(driver)
    progress(within)
    granted, fresh = crowd(within, [], 1, QUOTA)
    assert granted == [OUT_OF_MEMORY], "the running one's megabyte still counts"
    xpu_rough.finish(fresh, "\n")
    xpu_rough.finish(process, "\n")


@pytest.mark.parametrize("what", ["all", "events"])
def test_a_card_that_gets_lost(tmp_path: Path, what: str) -> None:
    """The application sees the driver's errors and no others; none where only measuring fails."""
    within = make_slice(tmp_path, stub_driver(file="faulty_driver.cc"), STUB_UUID, {})
    within.grant(memory_bytes=3 * GIB, cores_percent=20, tau_ns=5_000_000)
    lost = {"CARD_LOST": str(tmp_path / "lost"), "LOST_WHAT": what}
    process = xpu_rough.start(within, "alone", "lost_card", **lost)
    seen = json.loads(xpu_rough.finish(process))
    errors, fine = (102, 0) if what == "all" else (0, 102)
    assert seen == {
        "before": 102, "errors": errors, "fine": fine, "after": 102, "over": OUT_OF_MEMORY
    }  # fmt: skip
    card = within.ledger().cards[0]
    assert card.throttled_ns > 0
    assert card.charged_ns >= 200 * 100_000 * 0.9, "200 launches of 100 µs were charged"


@pytest.mark.parametrize(
    "fault",
    [
        "delay_ms 300",
        "missing_percent 50",
        "time_jump_ms -60000",
        "lost_card 0",
        "xid 79",
        "no such fault 1",
    ],
)
def test_monitor_while_nvml_fails(
    sim: Slice, node: simnode.Node, tmp_path: Path, fault: str
) -> None:
    """Its own figures are the ledger's: NVML beside them may be late, wrong or away."""
    faults = tmp_path / "faults"
    faults.write_text(f"{fault}\n")
    sim.grant(memory_bytes=QUOTA, cores_percent=10)
    process = xpu_rough.start(sim, "crowd", 1, GIB)
    assert process.stdout is not None and json.loads(process.stdout.readline()) == {"granted": [0]}
    watched = Slice(
        sim.directory, sim.built, sim.uuid, {**sim.outside, "SIMGPU_FAULTS": str(faults)}
    )
    done = watched.monitor("-p", "1", "-o", "json")
    assert done.returncode == 0, done.stderr
    (device,) = json.loads(done.stdout)["vxpus"]
    assert (device["uuid"], device["memory"], device["memory_quota"]) == (sim.uuid, GIB, QUOTA)
    assert ("nvml_card_core" in device) == (fault not in NVML_SILENT)
    xpu_rough.finish(process, "\n")


def test_monitor_of_a_page_that_was_scribbled_on(stub: Slice) -> None:
    stub.grant(memory_bytes=GIB, cores_percent=10)
    page = stub.ledger_file.read_bytes()
    stub.ledger_file.write_bytes(page[:8] + b"\xff" * (len(page) - 8))
    for form in ("table", "json"):
        done = stub.monitor("-p", "1", "-o", form)
        assert done.returncode == 0, done.stderr
