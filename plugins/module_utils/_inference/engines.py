# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Inference engines as data: which version takes which flags, and how a pod starts it (pure).

Everything is chosen by the version that the operator names, never by looking into an image: the
same input gives the same text. Sources: the engines' release notes and argument parsers, vLLM's and
SGLang's documentation of several nodes, and reference/distributed-inference.md.
"""

from __future__ import annotations

import re
import shlex
import typing as t
from dataclasses import dataclass

from .problem import Problem

ENGINES = ("vllm", "sglang", "vllm-ascend")
BACKENDS = ("mp", "ray", "dp", "none")
# Where the members of a group meet.
RAY_PORT = 6379
MASTER_PORT = 29501
DP_RPC_PORT = 29550
DIST_INIT_PORT = 20000

# Set by run.sh or the pod; everything else in a fragment is quoted.
LEADER_IP = '"$FLEXAI_LEADER_IP"'
WORKER_INDEX = '"$LWS_WORKER_INDEX"'
POD_IP = '"$POD_IP"'


@dataclass(frozen=True)
class Launch:
    """How one group of an engine is started; ``tp`` counts as the engine counts it."""

    engine: str
    version: str
    model_path: str
    served_name: str
    port: int
    tp: int = 1
    pp: int = 1
    dp: int = 1
    group_size: int = 1
    backend: str = "none"
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    dtype: str | None = None
    extra: tuple[str, ...] = ()
    # Seconds in which an engine that can drain does so after SIGTERM.
    drain_seconds: int | None = None


@dataclass(frozen=True)
class Commands:
    """Bash that ends in one foreground process, for the leader and for each worker."""

    leader: str
    worker: str
    warnings: tuple[str, ...]
    rendezvous_port: int


# -- versions ------------------------------------------------------------------------------------

Version = t.Tuple[int, ...]
_VERSION = re.compile(r"^v?(\d+)\.(\d+)(?:\.(\d+))?(?:[.-]?(?:post|rc)\d+)*(?:[+-][a-z0-9.-]+)?$")


def _version(text: str) -> Version | None:
    """``0.6.3.post1`` and ``v0.8.5rc1`` as their release's numbers."""
    match = _VERSION.match(text)
    return tuple(int(part or 0) for part in match.groups()) if match else None


class _Since(t.NamedTuple):
    """A capability: the first version that has it (pinned to where it is sure)."""

    version: Version
    what: str


# The first and the newest release that this table was made from. An older one is refused; a newer
# one is started like the newest, with a warning.
_RANGE: t.Mapping[str, tuple[Version, Version]] = {
    "vllm": ((0, 6, 3), (0, 33, 0)),
    "sglang": ((0, 4, 4), (0, 5, 23)),
    "vllm-ascend": ((0, 8, 5), (0, 8, 5)),
}
_DATA_PARALLEL = _Since((0, 9, 0), "--data-parallel-address and --headless")
_NNODES = _Since((0, 13, 0), "--nnodes, --node-rank and --master-addr")
_RAY_IN_IMAGE_UNTIL: Version = (0, 18, 0)
_SHUTDOWN_TIMEOUT: Version = (0, 18, 0)
_SGLANG_PIPELINE = _Since((0, 4, 7), "--pp-size")


class _Image(t.NamedTuple):
    """Since a version: the image's tag after v<version>, and the CUDA toolkit in it."""

    since: Version
    repository: str
    suffix: str
    cuda: str


_IMAGES: t.Mapping[str, tuple[_Image, ...]] = {
    "vllm": (
        _Image((0, 6, 3), "vllm/vllm-openai", "", "12.4"),
        _Image((0, 9, 0), "vllm/vllm-openai", "", "12.8"),
        _Image((0, 12, 0), "vllm/vllm-openai", "", "12.9"),
        _Image((0, 20, 0), "vllm/vllm-openai", "", "13.0"),
    ),
    "sglang": (
        _Image((0, 4, 4), "lmsysorg/sglang", "-cu124", "12.4"),
        _Image((0, 4, 10), "lmsysorg/sglang", "-cu126", "12.6"),
        _Image((0, 5, 3), "lmsysorg/sglang", "", "12.9"),
        _Image((0, 5, 11), "lmsysorg/sglang", "", "13.0"),
    ),
    "vllm-ascend": (_Image((0, 8, 5), "quay.io/ascend/vllm-ascend", "", ""),),
}


def _image(engine: str, version: str) -> _Image | None:
    key = _version(version)
    rows = [row for row in _IMAGES.get(engine, ()) if key and row.since <= key]
    return rows[-1] if rows else None


def default_image(engine: str, version: str) -> str:
    """The publisher's image of a version; empty where the table has none."""
    row = _image(engine, version)
    return f"{row.repository}:v{version.lstrip('v')}{row.suffix}" if row else ""


def cuda_floor(engine: str, version: str) -> str:
    """The CUDA toolkit in the publisher's image, for filter cuda_compat; empty where none is."""
    row = _image(engine, version)
    return row.cuda if row else ""


def _is_vllm(engine: str) -> bool:
    return engine in ("vllm", "vllm-ascend")


def _text(version: Version) -> str:
    return ".".join(str(part) for part in version)


# -- what can't be started -----------------------------------------------------------------------


def launch_problems(path: str, launch: Launch) -> list[Problem]:
    """What the named version of the engine doesn't take."""
    if launch.engine not in ENGINES:
        return [Problem(f"{path}.engine", launch.engine, " or ".join(ENGINES), "name one of these")]
    oldest, newest = _RANGE[launch.engine]
    version = _version(launch.version)
    if version is None or version < oldest:
        return [
            Problem(
                f"{path}.version",
                launch.version,
                f"a release of {launch.engine} from {_text(oldest)} on, such as {_text(newest)}",
                "name the release that is in the image; flags are chosen by it",
            )
        ]
    problems = _simple_problems(path, launch)
    if launch.backend not in BACKENDS:
        problems.append(
            Problem(f"{path}.backend", launch.backend, " or ".join(BACKENDS), "name one of these")
        )
    elif _is_vllm(launch.engine):
        problems += _vllm_problems(path, launch, version)
    else:
        problems += _sglang_problems(path, launch, version)
    return problems


def _simple_problems(path: str, launch: Launch) -> list[Problem]:
    problems = []
    if not launch.model_path or launch.model_path.startswith("-"):
        problems.append(
            Problem(
                f"{path}.model_path",
                launch.model_path,
                "a path or a name, which begins with no dash",
                "say where the model lies",
            )
        )
    use = launch.gpu_memory_utilization
    if use is not None and not 0 < use <= 1:
        problems.append(
            Problem(
                f"{path}.gpu_memory_utilization",
                use,
                "more than 0 and at most 1",
                "leave it out to have it derived from the slice",
            )
        )
    if launch.max_model_len is not None and launch.max_model_len < 1:
        problems.append(
            Problem(
                f"{path}.max_model_len",
                launch.max_model_len,
                "a whole number from 1 on",
                "leave it out to have it derived from the slice",
            )
        )
    if not 0 < launch.port < 65536:
        problems.append(Problem(f"{path}.port", launch.port, "1 to 65535", "take 8000"))
    for number, word in enumerate(launch.extra):
        flag = word.partition("=")[0].replace("_", "-")
        if flag in _OWN_FLAGS:
            problems.append(
                Problem(
                    f"{path}.extra[{number}]",
                    word,
                    f"flags other than {flag}, which is set from {_OWN_FLAGS[flag]}",
                    f"take it out here and set {_OWN_FLAGS[flag]}",
                )
            )
    return problems


# Flags that are written from a field of Launch: of two an engine takes the later without a word.
_OWN_FLAGS: t.Mapping[str, str] = {
    "--model": "model_path",
    "--model-path": "model_path",
    "--served-model-name": "served_name",
    "--port": "port",
    "--tensor-parallel-size": "tp",
    "--tp-size": "tp",
    "--tp": "tp",
    "-tp": "tp",
    "--pipeline-parallel-size": "pp",
    "--pp-size": "pp",
    "-pp": "pp",
    "--data-parallel-size": "dp",
    "--dp-size": "dp",
    "--dp": "dp",
    "-dp": "dp",
    "--nnodes": "group_size",
    "--distributed-executor-backend": "backend",
    "--max-model-len": "max_model_len",
    "--context-length": "max_model_len",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--mem-fraction-static": "gpu_memory_utilization",
    "--dtype": "dtype",
}


def _vllm_problems(path: str, launch: Launch, version: Version) -> list[Problem]:
    several = launch.group_size > 1
    if several and launch.backend == "none":
        return [
            Problem(
                f"{path}.backend",
                launch.backend,
                "mp, ray or dp with more than one pod",
                f"take {'mp' if version >= _NNODES.version else 'ray'}",
            )
        ]
    if several and launch.backend == "mp" and version < _NNODES.version:
        return [
            Problem(
                f"{path}.backend",
                launch.backend,
                f"ray: vLLM {_text(version)} lacks {_NNODES.what} (from {_text(_NNODES.version)})",
                f"take ray, or vLLM {_text(_NNODES.version)} or newer",
            )
        ]
    if (launch.backend == "dp" or launch.dp > 1) and version < _DATA_PARALLEL.version:
        return [
            Problem(
                f"{path}.dp",
                launch.dp,
                f"1: vLLM {_text(version)} lacks {_DATA_PARALLEL.what}"
                f" (from {_text(_DATA_PARALLEL.version)})",
                "run more groups of one instead",
            )
        ]
    if several and launch.dp > 1 and launch.backend != "dp":
        return [
            Problem(
                f"{path}.backend",
                launch.backend,
                f"dp with dp {launch.dp} over {launch.group_size} pods",
                "take dp, or dp 1",
            )
        ]
    if launch.backend == "dp" and launch.dp % launch.group_size:
        return [
            Problem(
                f"{path}.dp",
                launch.dp,
                f"a multiple of the {launch.group_size} pods",
                "give each pod as many ranks",
            )
        ]
    return []


def _sglang_problems(path: str, launch: Launch, version: Version) -> list[Problem]:
    problems = []
    if launch.backend in ("ray", "dp"):
        problems.append(
            Problem(
                f"{path}.backend",
                launch.backend,
                "mp or none: SGLang joins its nodes itself",
                "take mp; dp alone turns DP attention on",
            )
        )
    if launch.pp > 1 and version < _SGLANG_PIPELINE.version:
        problems.append(
            Problem(
                f"{path}.pp",
                launch.pp,
                f"1: SGLang {_text(version)} lacks {_SGLANG_PIPELINE.what}"
                f" (from {_text(_SGLANG_PIPELINE.version)})",
                "give tp all GPUs",
            )
        )
    return problems


# -- commands ------------------------------------------------------------------------------------


def _line(words: t.Iterable[str]) -> str:
    return " ".join(words)


def _quoted(words: t.Iterable[str]) -> list[str]:
    return [shlex.quote(word) for word in words]


def commands(launch: Launch) -> Commands:
    """Fragments for a launch without :func:`launch_problems`."""
    version = _version(launch.version) or _RANGE[launch.engine][1]
    warnings = _warnings(launch, version)
    if launch.engine == "sglang":
        return _sglang(launch, warnings)
    common = _vllm_words(launch, version)
    if launch.backend == "ray":
        return _ray(launch, common, warnings)
    if launch.backend == "dp" and launch.group_size > 1:
        return _data_parallel(launch, common, warnings)
    if launch.group_size > 1:
        return _nodes(launch, common, warnings)
    # A worker can't be: there is one pod.
    return Commands(_line(common) + "\n", "", warnings, 0)


def _warnings(launch: Launch, version: Version) -> tuple[str, ...]:
    found = []
    newest = _RANGE[launch.engine][1]
    if version > newest:
        found.append(
            f"{launch.engine} {launch.version} is newer than {_text(newest)}, the newest that is "
            "known here; it is started with that one's flags"
        )
    if launch.engine == "vllm" and launch.backend == "ray" and version >= _RAY_IN_IMAGE_UNTIL:
        found.append(
            f"vLLM {launch.version} no longer brings Ray (0.17 was the last); the image needs it "
            "added, or take backend mp"
        )
    if launch.engine == "vllm" and launch.backend == "ray" and launch.dp > 1:
        found.append("data parallelism over Ray hangs on several nodes from vLLM 0.20 on")
    return tuple(found)


def _vllm_words(launch: Launch, version: Version) -> list[str]:
    words = ["vllm", "serve", launch.model_path, "--host", "0.0.0.0", "--port", str(launch.port)]
    if launch.served_name:
        words += ["--served-model-name", launch.served_name]
    words += ["--tensor-parallel-size", str(launch.tp)]
    if launch.pp > 1:
        words += ["--pipeline-parallel-size", str(launch.pp)]
    if launch.dp > 1:
        words += ["--data-parallel-size", str(launch.dp)]
    if launch.max_model_len is not None:
        words += ["--max-model-len", str(launch.max_model_len)]
    if launch.gpu_memory_utilization is not None:
        words += ["--gpu-memory-utilization", str(launch.gpu_memory_utilization)]
    if launch.dtype:
        words += ["--dtype", launch.dtype]
    if launch.drain_seconds is not None and version >= _SHUTDOWN_TIMEOUT:
        words += ["--shutdown-timeout", str(launch.drain_seconds)]
    return _quoted([*words, *launch.extra])


def _nodes(launch: Launch, common: list[str], warnings: tuple[str, ...]) -> Commands:
    """vLLM's own way over several nodes: each waits at the leader's master port."""
    shared = [
        *common,
        *("--nnodes", str(launch.group_size), "--master-addr", LEADER_IP),
        *("--master-port", str(MASTER_PORT), "--node-rank"),
    ]
    return Commands(
        _line([*shared, "0"]) + "\n",
        _line([*shared, WORKER_INDEX, "--headless"]) + "\n",
        warnings,
        MASTER_PORT,
    )


def _data_parallel(launch: Launch, common: list[str], warnings: tuple[str, ...]) -> Commands:
    """Each pod holds as many ranks; the leader's API server spreads requests over all."""
    local = launch.dp // launch.group_size
    shared = [
        *common,
        *("--data-parallel-size-local", str(local), "--data-parallel-address", LEADER_IP),
        *("--data-parallel-rpc-port", str(DP_RPC_PORT)),
    ]
    start = f'"$((LWS_WORKER_INDEX * {local}))"'
    return Commands(
        _line(shared) + "\n",
        _line([*shared, "--headless", "--data-parallel-start-rank", start]) + "\n",
        warnings,
        DP_RPC_PORT,
    )


_NEED_RAY = """\
command -v ray >/dev/null || {
    echo "ray is not in this image (vLLM brings it up to 0.17): add it, or take backend mp" >&2
    exit 127
}
"""
# Members that are alive, asked of Ray itself; the supervisor ends it at its start timeout.
_AWAIT_MEMBERS = """\
python3 - <<'EOF_MEMBERS' || exit 1
import time
import ray

ray.init(address="auto", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < {members}:
    time.sleep(1)
EOF_MEMBERS
"""


def _ray(launch: Launch, common: list[str], warnings: tuple[str, ...]) -> Commands:
    head = (
        f"ray start --head --port {RAY_PORT} --node-ip-address {POD_IP} --disable-usage-stats "
        "|| exit 1\n"
    )
    leader = (
        _NEED_RAY
        + head
        + _AWAIT_MEMBERS.replace("{members}", str(launch.group_size))
        + _line([*common, "--distributed-executor-backend", "ray"])
        + "\n"
    )
    worker = (
        _NEED_RAY
        + f"ray start --address {LEADER_IP}:{RAY_PORT} --node-ip-address {POD_IP} "
        + "--disable-usage-stats --block\n"
    )
    return Commands(leader, worker if launch.group_size > 1 else "", warnings, RAY_PORT)


def _sglang(launch: Launch, warnings: tuple[str, ...]) -> Commands:
    """Every rank runs the same command; ranks above 0 serve a health that says nothing."""
    words = ["python3", "-m", "sglang.launch_server", "--model-path", launch.model_path]
    words += ["--host", "0.0.0.0", "--port", str(launch.port), "--enable-metrics"]
    if launch.served_name:
        words += ["--served-model-name", launch.served_name]
    words += ["--tp-size", str(launch.tp)]
    if launch.pp > 1:
        words += ["--pp-size", str(launch.pp)]
    if launch.dp > 1:
        words += ["--dp-size", str(launch.dp), "--enable-dp-attention"]
    if launch.max_model_len is not None:
        words += ["--context-length", str(launch.max_model_len)]
    if launch.gpu_memory_utilization is not None:
        words += ["--mem-fraction-static", str(launch.gpu_memory_utilization)]
    if launch.dtype:
        words += ["--dtype", launch.dtype]
    common = _quoted([*words, *launch.extra])
    if launch.group_size == 1:
        return Commands(_line(common) + "\n", "", warnings, 0)
    shared = [
        *common,
        *("--nnodes", str(launch.group_size)),
        *("--dist-init-addr", f"{LEADER_IP}:{DIST_INIT_PORT}", "--node-rank"),
    ]
    return Commands(
        _line([*shared, "0"]) + "\n",
        _line([*shared, WORKER_INDEX]) + "\n",
        warnings,
        DIST_INIT_PORT,
    )
