# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines: what each version takes, and commands that a shell reads as they were meant."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _cuda_compat
from ansible_collections.flexai.xpu.plugins.module_utils._inference import engines
from ansible_collections.flexai.xpu.plugins.module_utils._inference.engines import Launch
from hypothesis import given, settings
from hypothesis import strategies as st

VLLM = Launch("vllm", "0.13.0", "/models/m", "m", 8000)
SGLANG = Launch("sglang", "0.4.4.post1", "/models/m", "m", 30000)
ASCEND = replace(VLLM, engine="vllm-ascend", version="0.8.5rc1")
TWO_NODES = replace(VLLM, tp=2, pp=2, group_size=2, backend="mp")
RAY = replace(TWO_NODES, version="0.8.5", backend="ray")
DATA = replace(VLLM, dp=4, group_size=2, backend="dp")

ENV = {"FLEXAI_LEADER_IP": "10.0.0.1", "LWS_WORKER_INDEX": "1", "POD_IP": "10.0.0.2"}
# A program of each name says with which words it was called, one a line.
STUB = '#!/bin/sh\necho "${0##*/}"\nfor word in "$@"; do printf "%s\\n" "$word"; done\n'


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    for name in ("vllm", "ray", "python3"):
        program = tmp_path / name
        program.write_text(STUB)
        program.chmod(0o755)
    return tmp_path


def run(fragment: str, stubs: Path) -> list[str]:
    """The words of the fragment's last process, as the shell makes them."""
    env = {**ENV, "PATH": f"{stubs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", fragment], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def problems(launch: Launch) -> list[str]:
    return [str(problem) for problem in engines.launch_problems("engine", launch)]


# -- commands ------------------------------------------------------------------------------------


def test_one_pod_serves_and_has_no_worker(stubs: Path) -> None:
    launch = replace(
        VLLM, tp=2, max_model_len=512, gpu_memory_utilization=0.5, extra=("--enforce-eager",)
    )
    made = engines.commands(launch)
    assert " ".join(run(made.leader, stubs)) == (
        "vllm serve /models/m --host 0.0.0.0 --port 8000 --served-model-name m "
        "--tensor-parallel-size 2 --max-model-len 512 --gpu-memory-utilization 0.5 --enforce-eager"
    )
    assert (made.worker, made.rendezvous_port, made.warnings) == ("", 0, ())


def test_vllms_own_nodes_meet_at_the_leaders_master_port(stubs: Path) -> None:
    made = engines.commands(TWO_NODES)
    both = "--nnodes 2 --master-addr 10.0.0.1 --master-port 29501"
    assert " ".join(run(made.leader, stubs)).endswith(f"{both} --node-rank 0")
    assert " ".join(run(made.worker, stubs)).endswith(f"{both} --node-rank 1 --headless")
    assert made.rendezvous_port == 29501


def test_ray_is_started_before_the_leader_serves_and_is_all_that_a_worker_runs(
    stubs: Path,
) -> None:
    made = engines.commands(RAY)
    leader = " ".join(run(made.leader, stubs))
    start = "ray start --head --port 6379 --node-ip-address 10.0.0.2 --disable-usage-stats"
    assert leader.startswith(f"{start} python3 - vllm serve")
    assert leader.endswith("--distributed-executor-backend ray")
    assert "< 2:" in made.leader  # members to wait for
    assert " ".join(run(made.worker, stubs)) == (
        "ray start --address 10.0.0.1:6379 --node-ip-address 10.0.0.2 --disable-usage-stats --block"
    )
    assert made.rendezvous_port == 6379


def test_an_image_without_ray_is_told_so(stubs: Path, tmp_path: Path) -> None:
    (stubs / "ray").unlink()
    for fragment in (engines.commands(RAY).leader, engines.commands(RAY).worker):
        done = subprocess.run(
            ["/bin/bash", "-c", fragment],
            env={**ENV, "PATH": str(stubs)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 127
        assert "ray is not in this image" in done.stderr


def test_a_leader_whose_members_cannot_be_counted_serves_nobody(stubs: Path) -> None:
    (stubs / "python3").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(engines.commands(RAY).leader, stubs)
    assert "vllm" not in error.value.stdout


def test_data_parallel_ranks_are_counted_over_the_pods(stubs: Path) -> None:
    made = engines.commands(DATA)
    both = "--data-parallel-size-local 2 --data-parallel-address 10.0.0.1 --data-parallel-rpc-port"
    assert f"--data-parallel-size 4 {both} 29550" in " ".join(run(made.leader, stubs))
    worker = " ".join(run(made.worker, stubs))
    assert worker.endswith(f"{both} 29550 --headless --data-parallel-start-rank 2")


def test_sglang_runs_one_command_on_every_rank(stubs: Path) -> None:
    launch = replace(SGLANG, tp=2, group_size=2, backend="mp", max_model_len=4096)
    made = engines.commands(launch)
    leader, worker = run(made.leader, stubs), run(made.worker, stubs)
    assert " ".join(leader) == (
        "python3 -m sglang.launch_server --model-path /models/m --host 0.0.0.0 --port 30000 "
        "--enable-metrics --served-model-name m --tp-size 2 --context-length 4096 --nnodes 2 "
        "--dist-init-addr 10.0.0.1:20000 --node-rank 0"
    )
    assert worker == [*leader[:-1], "1"]


def test_only_versions_that_can_drain_are_told_to() -> None:
    for version, has in (("0.17.1", False), ("0.18.0", True)):
        made = engines.commands(replace(VLLM, version=version, drain_seconds=30))
        assert ("--shutdown-timeout 30" in made.leader) == has


LAUNCHES = {
    "one": VLLM,
    "nodes": TWO_NODES,
    "ray": RAY,
    "dp": DATA,
    "sglang": replace(SGLANG, tp=2, group_size=2, backend="mp"),
    "ascend": ASCEND,
}
# No NUL, which no argument holds; no newline, since the stubs say a word a line.
words = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), min_size=1)


@given(st.sampled_from(sorted(LAUNCHES)), words, words, st.lists(words, max_size=3))
@settings(max_examples=40, deadline=None)
def test_a_hostile_name_stays_one_word(kind: str, path: str, name: str, extra: list[str]) -> None:
    launch = replace(LAUNCHES[kind], model_path=path, served_name=name, extra=tuple(extra))
    made = engines.commands(launch)
    for fragment in (made.leader, made.worker):
        subprocess.run(["bash", "-n", "-c", fragment], check=True)
    found = shlex.split(made.leader.strip().rpartition("\n")[2] if kind == "ray" else made.leader)
    assert path in found and name in found and all(word in found for word in extra)


@pytest.mark.parametrize(
    "name", ["$(touch /tmp/pwned)", "`id`", "a b", "a'b", '"; exit 3; "', "${HOME}", "*", "名"]
)
def test_a_shell_takes_names_as_they_are(name: str, stubs: Path) -> None:
    launch = replace(TWO_NODES, model_path=f"/m/{name}", served_name=name)
    for fragment in (engines.commands(launch).leader, engines.commands(launch).worker):
        said = run(fragment, stubs)
        assert said[2] == f"/m/{name}" and name in said[3:]


# -- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_what_can_be_started(launch: Launch) -> None:
    assert problems(launch) == []


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (replace(VLLM, engine="vlm"), 'engine.engine: "vlm"; allowed: vllm or sglang or vllm-'),
        (replace(VLLM, version="latest"), 'engine.version: "latest"; allowed: a release of vllm'),
        (replace(VLLM, version="0.5.0"), "from 0.6.3 on"),
        (replace(TWO_NODES, version="0.8.5"), "take ray, or vLLM 0.13.0 or newer"),
        (replace(TWO_NODES, backend="none"), "do: take mp"),
        (replace(TWO_NODES, version="0.8.5", backend="none"), "do: take ray"),
        (replace(DATA, version="0.8.5"), "vLLM 0.8.5 lacks --data-parallel-address"),
        (replace(DATA, backend="mp"), "dp with dp 4 over 2 pods"),
        (replace(DATA, dp=3), "a multiple of the 2 pods"),
        (replace(ASCEND, group_size=2, backend="mp"), "take ray"),
        (replace(SGLANG, backend="ray"), "SGLang joins its nodes itself"),
        (replace(SGLANG, pp=2), "SGLang 0.4.4 lacks --pp-size"),
        (replace(VLLM, backend="horovod"), "mp or ray or dp or none"),
        (replace(VLLM, gpu_memory_utilization=1.2), "more than 0 and at most 1"),
        (replace(VLLM, max_model_len=0), "engine.max_model_len: 0"),
        (replace(VLLM, port=0), "engine.port: 0"),
        (replace(VLLM, model_path="--help"), "begins with no dash"),
        (replace(VLLM, extra=("--max_model_len=9",)), "flags other than --max-model-len"),
    ],
)
def test_what_cannot(launch: Launch, said: str) -> None:
    found = problems(launch)
    assert len(found) == 1 and said in found[0]


def test_ray_with_a_vllm_that_no_longer_brings_it_is_a_warning() -> None:
    assert engines.commands(replace(RAY, version="0.17.1")).warnings == ()
    (warning,) = engines.commands(replace(RAY, version="0.18.0")).warnings
    assert "no longer brings Ray" in warning


def test_a_release_after_the_table_is_started_like_the_newest() -> None:
    launch = replace(VLLM, version="0.99.0")
    assert problems(launch) == []
    assert "newer than 0.33.0" in engines.commands(launch).warnings[0]


@pytest.mark.parametrize(
    ("engine", "version", "image", "cuda"),
    [
        ("vllm", "0.6.3.post1", "vllm/vllm-openai:v0.6.3.post1", "12.4"),  # document 003
        ("vllm", "v0.8.5", "vllm/vllm-openai:v0.8.5", "12.4"),
        ("vllm", "0.19.1", "vllm/vllm-openai:v0.19.1", "12.9"),
        ("vllm", "0.20.0", "vllm/vllm-openai:v0.20.0", "13.0"),
        ("sglang", "0.4.4.post1", "lmsysorg/sglang:v0.4.4.post1-cu124", "12.4"),  # document 004
        ("sglang", "0.5.12", "lmsysorg/sglang:v0.5.12", "13.0"),
        ("vllm-ascend", "0.8.5rc1", "quay.io/ascend/vllm-ascend:v0.8.5rc1", ""),  # document 001
        ("vllm", "latest", "", ""),
    ],
)
def test_images_and_the_cuda_in_them(engine: str, version: str, image: str, cuda: str) -> None:
    assert engines.default_image(engine, version) == image
    assert engines.cuda_floor(engine, version) == cuda


def test_the_documents_driver_runs_its_vllm_but_none_of_todays_on_a_consumer_card() -> None:
    def verdict(version: str) -> str:
        cuda = engines.cuda_floor("vllm", version)
        return _cuda_compat.answer(_cuda_compat.Question("535.183.06", cuda)).verdict

    assert verdict("0.6.3.post1") == "minor"
    assert verdict("0.33.0") == "fail"
