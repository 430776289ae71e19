# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments of dead engines go, those of living ones never; a gate waits for health."""

from __future__ import annotations

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from ansible_collections.flexai.xpu.plugins.module_utils import _syshax_helper as helper
from ansible_collections.flexai.xpu.plugins.module_utils._syshax_helper import Segment

BLOCK = "vllm_shared_chatcmpl-1_phys_0_rank_0"


def test_stale_is_what_nobody_holds_and_no_request_waits_for() -> None:
    held = {(1, 7)}
    segments = [
        Segment(BLOCK, (1, 1), 0.0),
        Segment("vllm_shared_held", (1, 7), 0.0),
        Segment("vllm_shared_fresh", (1, 2), 950.0),
        Segment("vllm_shared_request_map", (1, 3), 0.0),
        Segment("psm_0a1b2c3d", (1, 4), 0.0),
        Segment("postgres.1234", (1, 5), 0.0),
        Segment("sem.psm_0a1b", (1, 6), 0.0),
    ]
    found = helper.stale(segments, held, now=1000.0, older_than_s=900.0)
    assert found == [BLOCK, "psm_0a1b2c3d"]


def test_a_segment_that_a_process_maps_or_has_open_stays(tmp_path: Path) -> None:
    for name in (BLOCK, "vllm_shared_mapped", "vllm_shared_open", "theirs"):
        (tmp_path / name).write_bytes(b"x" * 4096)
        os.utime(tmp_path / name, (0, 0))
    hold = (
        "import mmap, sys\n"
        "f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 4096); f.close()\n"
        "g = open(sys.argv[2], 'rb'); print('held', flush=True); sys.stdin.read()\n"
    )
    mapped, opened = tmp_path / "vllm_shared_mapped", tmp_path / "vllm_shared_open"
    # Other users' processes can't be looked into on every machine that runs tests; two are enough.
    proc = tmp_path / "proc"
    proc.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(mapped), str(opened)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as engine:
        assert engine.stdout is not None
        assert engine.stdin is not None
        engine.stdout.readline()
        for pid in (os.getpid(), engine.pid):
            (proc / str(pid)).symlink_to(f"/proc/{pid}")
        assert helper.sweep(str(tmp_path), 900, str(proc)) == [BLOCK]
        engine.stdin.close()
    died = helper.sweep(str(tmp_path), 900, str(proc))
    assert sorted(died) == ["vllm_shared_mapped", "vllm_shared_open"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["proc", "theirs"]


def test_the_gate_opens_when_the_engine_is_healthy_and_not_before() -> None:
    answers = [503, 503, 200]

    class Engine(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/health"
            assert helper.main(["wait", url, str(os.getpid())]) == 0
        finally:
            server.shutdown()
            thread.join()
    assert answers == []


def test_the_gate_gives_up_when_the_engine_has_died() -> None:
    """systemd waits for the gate, not for the engine, while a unit starts."""
    with subprocess.Popen([sys.executable, "-c", ""]) as engine:
        engine.wait()
    assert helper.main(["wait", "http://127.0.0.1:9/health", str(engine.pid)]) == 1


def test_the_helper_runs_alone_as_the_host_gets_it(tmp_path: Path) -> None:
    program = tmp_path / "flexai-syshax"
    program.write_text(Path(helper.__file__).read_text())
    argv = [sys.executable, "-I", str(program), "sweep", str(tmp_path), "--older-than=0"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    # No engine runs: there is nothing to look into.
    argv = [sys.executable, "-I", str(program), "sweep-container", "/bin/false", "vllm_gpu"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == ""
