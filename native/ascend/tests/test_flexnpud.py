# SPDX-License-Identifier: Apache-2.0
"""flexnpud and libascend_direct.so on a simulated 910B3: who gets which share, and what goes wrong.

The referee is the chip's own ledger. Shares are those of the time that tenants used, not of the
clock's, and cycles are 100 ms: what a busy machine takes from a turn would be much of 2 ms and is
little of 20 ms. Ten operators of 2 ms fill such a turn, so a tenant that gets no processor in it
has work under way all the same. Figures at the shipped 10 ms belong to a benchmark.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path

import pytest
from flexnpud_host import HANGS_SECONDS, Host, until
from xpubuild.recipes import ascend

MIB = 1 << 20
OUT_OF_MEMORY = 207001
LONG_CYCLES = {"flexnpu__schedule_cycle": "100000"}
WINDOW_NS = 1_500_000_000
WINDOWS = 20
KILLS = 10_000


def assert_shares(host: Host, wanted: dict[subprocess.Popen[str], float]) -> None:
    """In one of WINDOWS windows each used what it should, within 2 points; a tenant that got no
    processor for a while has used less of that window, and nobody else is to blame."""
    seen = []
    for _ in range(WINDOWS):
        seen.append(host.shares(*wanted, of_ns=WINDOW_NS))
        if all(abs(got - want) <= 2 for got, want in zip(seen[-1], wanted.values(), strict=True)):
            return
    pytest.fail(f"the chip says {seen}, granted were {list(wanted.values())}")


def requests_of(host: Host, task: str, slot: int = 0) -> tuple[int, int, int]:
    """``using_turn``, ``launches`` and ``wants`` of a process in the task's request page."""
    page = (host.directory / "pages" / task / "run/request.page").read_bytes()
    using, launches, wants = struct.unpack_from("<QQI", page, 64 + 576 * slot + 64)
    return using, launches, wants


@pytest.mark.parametrize("share_in_idle", ["false", "true"])
def test_two_tasks_at_2_and_8_use_20_and_80_percent(host: Host, share_in_idle: str) -> None:
    host.configure(flexnpu__share_in_idle=share_in_idle, **LONG_CYCLES)
    host.start()
    assert host.register("two", 2)[0] == 200
    assert host.register("eight", 8)[0] == 200
    two, eight = host.tenant("two", "spin", 2000), host.tenant("eight", "spin", 3000, 3)
    host.works(two)
    host.works(eight)
    assert_shares(host, {two: 20, eight: 80})


def test_who_waits_for_each_operator_gets_its_share_too(host: Host) -> None:
    host.configure(**LONG_CYCLES)
    host.start()
    host.register("steps", 5)
    host.register("spins", 5)
    steps, spins = host.tenant("steps", "steps", 3000), host.tenant("spins", "spin", 500)
    host.works(steps)
    host.works(spins)
    # What it does between two operators is its own time: never more than its half, and most of it.
    assert 25 <= host.shares(steps, spins, of_ns=WINDOW_NS)[0] <= 52


def test_slots_that_nobody_owns_stay_idle(host: Host) -> None:
    host.configure(**LONG_CYCLES)
    host.start()
    host.register("two", 2)
    two = host.tenant("two", "spin", 500)
    host.works(two)
    began, used = time.monotonic_ns(), host.busy_ns(two)[0]
    host.works(two, 500_000_000)
    percent = 100 * (host.busy_ns(two)[0] - used) / (time.monotonic_ns() - began)
    assert percent <= 22


def test_with_share_in_idle_one_task_has_the_chip(host: Host) -> None:
    host.configure(flexnpu__share_in_idle="true", **LONG_CYCLES)
    host.start()
    host.register("two", 2)
    two = host.tenant("two", "spin", 500)
    host.works(two)

    def much_more_than_it_owns() -> bool:
        began, used = time.monotonic_ns(), host.busy_ns(two)[0]
        host.works(two, 500_000_000)
        return (host.busy_ns(two)[0] - used) / (time.monotonic_ns() - began) > 0.4

    until(much_more_than_it_owns, "idle time is not shared")


def test_every_kind_of_launch_is_gated(host: Host) -> None:
    host.start()
    host.register("a", 10)
    ran = host.answer("a", "every", ascend.ASCEND / "include/xpu_ascend/launches.def")
    assert len(ran) == 27
    assert requests_of(host, "a")[1] == 27, "each went through the gate"


def test_memory_is_exact(host: Host) -> None:
    host.start()
    host.register("a", 2, 64)
    whole, more = host.answer("a", "memory", 64 * MIB, 1)
    assert (whole["code"], whole["total"], whole["free"]) == (0, 64 * MIB, 0)
    assert more["code"] == OUT_OF_MEMORY
    over, small, page = host.answer("a", "memory", 64 * MIB + 1, 1, 3 * MIB)
    assert over["code"] == OUT_OF_MEMORY
    assert small["free"] == 64 * MIB - 4096, "small allocations take pages of 4 KiB"
    assert page["free"] == 60 * MIB - 4096, "large ones take pages of 2 MiB"


def test_processes_share_a_quota_and_a_killed_one_gives_it_back(host: Host) -> None:
    host.start()
    host.register("a", 2, 64)
    first = host.tenant("a", "hold", 48 * MIB)
    assert first.stdout is not None
    assert '"code": 0' in first.stdout.readline()
    assert host.answer("a", "memory", 32 * MIB)[0]["code"] == OUT_OF_MEMORY
    assert host.ask("/device/flexnpu-info")[1]["flexnpus"][0]["memory_usage"] == 48
    first.kill()
    first.wait()
    assert host.answer("a", "memory", 64 * MIB)[0]["code"] == 0


def test_a_chip_is_known_by_its_die_not_by_its_number(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start()
    host.register("a", 2, 64, npu=1)
    # The first device of this process is the second chip: the task's own.
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    assert host.answer("a", "memory", 65 * MIB)[0]["code"] == OUT_OF_MEMORY
    # Here it is a chip of which nothing was granted.
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0")
    assert host.answer("a", "memory", 65 * MIB)[0]["code"] == 0


def test_without_pages_nothing_is_limited(host: Host) -> None:
    done = host.tenant("nobody", "spin", 500)
    host.works(done)


def test_a_killed_holder_costs_the_others_nothing(host: Host) -> None:
    host.configure(flexnpu__share_in_idle="true")
    host.start()
    host.register("a", 5)
    host.register("b", 5)
    other = host.tenant("b", "spin", 500)
    for _ in range(5):
        victim = host.tenant("a", "spin", 500)
        host.works(victim, 1)
        victim.kill()
        victim.wait()
        host.works(other)


def test_a_stopped_holder_loses_its_turn_and_comes_back(host: Host) -> None:
    host.configure(flexnpu__share_in_idle="true", **LONG_CYCLES)
    host.start()
    host.register("a", 5)
    host.register("b", 5)
    stopped, other = host.tenant("a", "spin", 500), host.tenant("b", "spin", 500)
    host.works(stopped)
    host.works(other)

    def taken() -> bool:
        stopped.send_signal(signal.SIGSTOP)
        host.works(other, 300_000_000)
        if "task a did not return its turn" in host.log:
            return True
        stopped.send_signal(signal.SIGCONT)  # it had no turn at that moment
        host.works(stopped, 1)
        return False

    until(taken, "it is never stopped while it holds the turn")
    stopped.send_signal(signal.SIGCONT)
    host.works(stopped)


def test_tasks_outlive_a_killed_flexnpud(host: Host) -> None:
    host.configure(**LONG_CYCLES)
    host.start()
    host.register("two", 2)
    host.register("eight", 8)
    before = host.ask("/device/flexnpu-info")[1]["flexnpus"]
    two, eight = host.tenant("two", "spin", 2000), host.tenant("eight", "spin", 2000)
    host.works(two)
    host.works(eight)
    host.stop(signal.SIGKILL)
    host.start()
    after = host.ask("/device/flexnpu-info")[1]["flexnpus"]
    assert [task["flexnpu_id"] for task in after] == [task["flexnpu_id"] for task in before]
    assert_shares(host, {two: 20, eight: 80})


def test_what_a_tenant_writes_into_its_page_grants_nothing(host: Host) -> None:
    host.configure(**LONG_CYCLES)
    host.start()
    host.register("forger", 2)
    host.register("honest", 8)
    forger, honest = host.tenant("forger", "spin", 500), host.tenant("honest", "spin", 500)
    host.works(forger)
    host.works(honest)
    page = host.directory / "pages/forger/run/request.page"
    chance = random.Random(8)
    with page.open("r+b") as file:
        for _ in range(50):
            file.seek(8)
            file.write(chance.randbytes(36928 - 8))
            file.flush()
            host.works(honest, 1_000_000)
    assert host.shares(forger, honest, of_ns=WINDOW_NS)[0] <= 25
    for name in ("config.page", "grant.page"):
        mode = (host.directory / "pages/forger/etc" / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o644


@pytest.mark.parametrize("name", ["request.page", "ledger.page"])
def test_a_tenant_that_cuts_a_page_off_harms_itself_alone(host: Host, name: str) -> None:
    host.configure(**LONG_CYCLES)
    host.start()
    host.register("cutter", 2)
    host.register("honest", 8)
    cutter, honest = host.tenant("cutter", "spin", 500), host.tenant("honest", "spin", 500)
    host.works(cutter)
    host.works(honest)
    os.truncate(host.directory / "pages/cutter/run" / name, 0)
    host.works(honest)
    used = {task["flexnpu_id"]: task for task in host.ask("/device/flexnpu-info")[1]["flexnpus"]}
    assert used["cutter"]["memory_usage"] == 0
    host.works(honest)


def test_a_tenant_that_spoils_its_directory_keeps_nobody_else_out(host: Host) -> None:
    host.start()
    host.register("spoiler", 2)
    host.register("honest", 8)
    host.stop()
    page = host.directory / "pages/spoiler/run/request.page"
    page.unlink()
    page.mkdir()
    host.start()
    (task,) = host.ask("/device/flexnpu-info")[1]["flexnpus"]
    assert task["flexnpu_id"] == "honest"
    assert "ins: spoiler stays out: cannot use " in host.log
    host.works(host.tenant("honest", "spin", 500))


@pytest.mark.soak
def test_without_flexnpud_work_goes_on_after_ten_seconds(host: Host) -> None:
    host.start()
    host.register("a", 2)
    tenant = host.tenant("a", "spin", 500)
    host.works(tenant)
    host.stop(signal.SIGKILL)
    host.works(tenant, 1_000_000_000)


@pytest.mark.soak
def test_kills_at_random_leave_nobody_without_turns(host: Host) -> None:
    host.configure(flexnpu__share_in_idle="true")
    host.start()
    for name in ("a", "b", "c"):
        host.register(name, 3)
    tenants = {name: host.tenant(name, "spin", 300) for name in ("a", "b", "c")}
    chance = random.Random(1)
    for _ in range(KILLS // 20):
        for _ in range(20):
            name = chance.choice(["a", "b", "c", "daemon"])
            time.sleep(chance.random() / 50)
            if name == "daemon":
                host.stop(signal.SIGKILL)
                host.start()
                continue
            tenants[name].kill()
            tenants[name].communicate()
            host.tenants.remove(tenants[name])
            tenants[name] = host.tenant(name, "spin", 300)
        for tenant in tenants.values():
            host.works(tenant, 1_000_000)


def test_registering_again_changes_nothing_and_another_body_is_refused(host: Host) -> None:
    host.start()
    assert host.register("a", 4)[1]["status"] == "OK"
    assert host.register("a", 4)[1] == {"status": "OK", "message": "a is registered already"}
    code, answer = host.register("a", 5)
    assert (code, answer["status"]) == (409, "NOK")
    assert answer["message"].startswith("flexnpu_id a is registered already, as {")
    code, answer = host.register("b", 7)
    assert (code, answer["status"]) == (409, "NOK")
    assert "of the 10 slots (quota) of npu 0 chip 0 6 are free" in answer["message"]
    assert host.register("c", 10, npu=1)[0] == 200, "another chip has slots of its own"
    assert host.register("d", 1, 70000)[0] == 409
    (a, c) = host.ask("/device/flexnpu-info")[1]["flexnpus"]
    assert c["npu"] == 1
    assert a == {
        "flexnpu_id": "a",
        "entity": "of-a",
        "npu": 0,
        "chip": 0,
        "aicore_alloc": 4,
        "memory_alloc": 1024,
        "priority": 0,
        "aicore_usage": 0,
        "memory_usage": 0,
    }
    assert sorted(path.name for path in (host.directory / "ins").iterdir()) == ["a", "c"]
    for _ in range(2):
        assert host.ask("/device/unregister", {"flexnpu_id": "a"})[1]["status"] == "OK"
    assert [path.name for path in (host.directory / "ins").iterdir()] == ["c"]
    assert host.register("b", 10)[0] == 200


def test_chips_health_and_metrics(host: Host) -> None:
    host.start()
    host.register("a", 4)
    chips = host.ask("/device/physical-info")[1]["chips"]
    assert [(chip["npu"], chip["chip"], chip["aicore_alloc"]) for chip in chips] == [
        (0, 0, 4),
        (1, 0, 0),
    ]
    assert [chip["die"] for chip in chips] == list(host.node.dies)
    assert host.ask("/service/health") == (
        200,
        {"status": "OK", "message": "flexnpud serves 1 tasks"},
    )
    assert host.ask("/server/launch", {})[0] == 404
    assert host.ask("/device/register", method="GET")[0] == 405
    with socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        text = connection.makefile().read()
    assert (
        'flexnpu_aicore_alloc{flexnpu_id="a",entity="of-a",npu="0",chip="0"} 4' in text.splitlines()
    )


def test_a_client_that_speaks_garbage_or_nothing_disturbs_nobody(host: Host) -> None:
    host.start()
    port = int(host.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"POST /device/reg")
        with socket.create_connection(("127.0.0.1", port)) as garbage:
            garbage.sendall(b"\x16\x03\x01\x00\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400 ")
        assert host.register("a", 4)[0] == 200
        code, answer = host.ask("/device/register", "no json")
        assert (code, answer["message"]) == (400, "the body is no JSON object")


def test_a_torn_file_is_set_aside_and_the_others_are_loaded(host: Host) -> None:
    host.start()
    host.register("well", 4)
    host.stop()
    ins = host.directory / "ins"
    (ins / "torn").write_text('{"flexnpu_id": "to')
    host.start()
    assert sorted(path.name for path in ins.iterdir()) == ["torn.torn", "well"]
    assert "ins: torn (the body is no JSON object) is torn; set aside as .torn" in host.log
    assert len(host.ask("/device/flexnpu-info")[1]["flexnpus"]) == 1


def test_two_daemons_are_one_too_many(host: Host) -> None:
    host.start()
    assert "is in use by another flexnpud; stop that one first" in host.refused()


def test_a_wrong_configuration_is_told_and_nothing_starts(host: Host) -> None:
    host.configure(ticker__quota="17")
    assert "ticker.quota is '17'; allowed is a whole number from 1 to 16" in host.refused()
    host.configure(flexnpu__dcmi_lib_file="/nowhere/libdcmi.so")
    assert "dcmi_lib_file: /nowhere/libdcmi.so" in host.refused()


def test_with_a_token_only_who_has_it_is_served(host: Host) -> None:
    token = host.directory / "token"
    token.write_text("s3cret\n")
    token.chmod(0o644)
    host.configure(server__token_file=str(token))
    assert "may be read by others; chmod 0600 it" in host.refused()
    token.chmod(0o600)
    host.start()
    assert host.ask("/device/flexnpu-info")[0] == 401
    assert host.ask("/device/flexnpu-info", token="s3cre")[0] == 401
    assert host.ask("/device/flexnpu-info", token="s3cret")[0] == 200
    assert host.ask("/service/health")[0] == 200


def test_the_documents_scripts_run_twice(host: Host) -> None:
    host.start()
    share = host.built / "share/flexnpud"
    environment = {**os.environ, "FLEXNPUD": host.url}

    def register() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [share / "register.sh"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
            check=False,
        )

    for _ in range(2):
        done = register()
        assert done.returncode == 0, done
    tasks = host.ask("/device/flexnpu-info")[1]["flexnpus"]
    assert [task["aicore_alloc"] for task in tasks] == [2, 8]
    host.register("more", 1, npu=1)
    host.ask("/device/unregister", {"flexnpu_id": "flexnpu1"})
    host.register("other", 8)
    assert register().returncode == 1, "the chip is full; the script says so"
    host.stop()
    clear = host.directory / "clear.sh"
    clear.write_bytes((share / "clear.sh").read_bytes())
    subprocess.run(["sh", clear], check=True)
    host.start()
    assert host.ask("/device/flexnpu-info")[1]["flexnpus"] == []


def test_the_log_is_kept_in_pieces(host: Host) -> None:
    host.configure(logger__log_file_size="4096", logger__log_file_archive_count="2")
    host.start()
    host.register("a", 10)
    for _ in range(100):
        assert host.register("b", 1)[0] == 409

    def pieces() -> list[str]:
        return sorted(path.name for path in Path(host.directory).glob("flexnpud.log*"))

    assert pieces() == ["flexnpud.log", "flexnpud.log.1", "flexnpud.log.2"]
