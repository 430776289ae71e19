# SPDX-License-Identifier: Apache-2.0
"""Three generations of keys and files, one tree; and the program's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from syshax import config
from syshax.cli import main
from syshax.config import ConfigError

SPELLINGS = {
    "gpu.port": ["services.gpu.port", "xpu.port", "services.xpu.port"],
    "cpu.host": ["services.cpu.host"],
    "conductor.port": ["services.conductor.port"],
    "model": ["models.default"],
    "maxtokens": ["models.params.max_tokens"],
    "temperature": ["models.params.temperature"],
    "auto_pd_offload": ["decider.auto_pd_offload"],
    "cpu_max_batch_size": ["decider.cpu_max_batch_size"],
    "request_timeout": ["system.request_timeout"],
}


@pytest.mark.parametrize(("key", "others"), SPELLINGS.items())
def test_every_generation_means_the_same_setting(key: str, others: list[str]) -> None:
    assert all(config.canonical(other) == config.canonical(key) != [] for other in others)


def test_host_alone_sets_all_three() -> None:
    assert len(config.canonical("host")) == 3 == len(config.canonical("services.host"))


FILES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "first": (
        {"services": {"gpu": {"host": "10.0.0.1", "port": 7001}, "cpu": {"port": 7002}},
         "models": {"default": "m", "params": {"test_prompt": "hi", "test_tokens": 30}},
         "system": {"max_queue_size": 7, "request_timeout": 600}, "monitor": {"interval": 5}},
        ["http://10.0.0.1:7001", "http://127.0.0.1:7002"],
    ),
    "urls": (
        {"services": {"gpu": {"url": "http://g:1/v1", "metrics_url": "http://g:1/metrics"},
                      "cpu": {"url": "http://c:2"}}},
        ["http://g:1", "http://c:2"],
    ),
    "pools": (
        {"services": {"gpu": [{"host": "a", "port": 1}, {"host": "b", "port": 1}],
                      "cpu": {"host": "c", "port": 3}}, "heartbeat": {"interval": 10}},
        ["http://a:1", "http://b:1", "http://c:3"],
    ),
    "short": ({"gpu": {"port": 5}, "auto_pd_offload": True}, ["http://127.0.0.1:5",
                                                             "http://127.0.0.1:8002"]),
    "no CPU": ({"services": {"cpu": []}}, ["http://127.0.0.1:8001"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_shape_are_read(name: str) -> None:
    tree, urls = FILES[name]
    assert [engine.url for engine in config.validate(tree).engines] == urls


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"gpu": {"port": 0}},
            "services.gpu.port: 0 is out of range; a whole number from 1 to 65535 is wanted",
        ),
        ({"gpu": {"port": "8001"}}, "services.gpu.port: '8001' is a str; a whole number"),
        ({"gpu": {"port": True}}, "services.gpu.port: True is a bool"),
        ({"request_timeout": float("nan")}, "system.request_timeout: nan is out of range"),
        ({"handoff": {"dialect": "nix"}}, "one of auto, nixl, syshax, shared, none is wanted"),
        ({"gpu": {"port": 8010}}, "the conductor would ask itself"),
        ({"gpu": {"port": 8002}}, "gpu and cpu are both http://127.0.0.1:8002"),
        ({"services": {"gpu": [{"port": 1, "prot": 2}]}}, "services.gpu[0].prot: no such setting"),
        ({"services": {"gpu": [{"host": "a"}]}}, "services.gpu[0].port: nothing is set"),
        ({"services": {"gpu": [], "cpu": []}}, "no engine is named"),
        ({"services": {"gpu": {"url": "nothing"}}}, "'nothing' is no URL"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.validate(tree)
    assert message in str(caught.value)


def test_unknown_and_unused_keys_warn() -> None:
    loaded = config.validate({"decider": {"token_limit_min": 3, "max_seqs": 4}})
    assert loaded.warnings == (
        "decider.token_limit_min: accepted for old files, but nothing uses it",
        "decider.max_seqs: no such setting; it is ignored",
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc" / "config.yaml"
    monkeypatch.setenv("SYSHAX_CONFIG", str(path))
    return path


def test_the_documents_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    for key, value in (
        ("gpu.port", "8001"), ("cpu.port", "8002"), ("conductor.port", "8010"), ("model", "ds-32b"),
    ):  # fmt: skip
        assert main(["config", key, value]) == 0
    assert "set model to ds-32b" in capsys.readouterr().out
    assert main(["check-config"]) == 0
    capsys.readouterr()
    assert main(["interfaces"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gpu: http://0.0.0.0:8001", "cpu: http://0.0.0.0:8002", "conductor: http://0.0.0.0:8010",
    ]  # fmt: skip
    assert main(["model"]) == 0
    assert capsys.readouterr().out.startswith("model: ds-32b\nmax_tokens: 200\n")
    assert file.stat().st_mode & 0o777 == 0o640


def test_config_without_a_file_starts_from_the_defaults(file: Path) -> None:
    assert main(["config", "auto_pd_offload", "true"]) == 0
    assert config.load(file)["decider.auto_pd_offload"] is True


def test_a_setting_replaces_its_older_spelling(file: Path) -> None:
    config.write(file, "gpu: {port: 1}\n")
    assert main(["config", "services.gpu.port", "2"]) == 0
    assert yaml.safe_load(file.read_text()) == {"gpu": {}, "services": {"gpu": {"port": 2}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "gpu.prot", "1"], "gpu.prot: no such setting"),
        (["config", "gpu.port", "none"], "services.gpu.port: 'none' is a str"),
        (["config", "gpu.port", "70000"], "services.gpu.port: 70000 is out of range"),
    ],
)
def test_a_bad_setting_changes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    main(["init"])
    before = file.read_text()
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert file.read_text() == before


def test_a_broken_file_stops_neither_init_nor_check(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write(file, "services: [\n")
    assert main(["check-config"]) == 1
    assert "is not valid YAML" in capsys.readouterr().err
    assert main(["init"]) == 0
    assert main(["check-config"]) == 0
    assert file.with_name("config.yaml.old").read_text() == "services: [\n"


def test_the_example_is_valid_and_has_no_warning() -> None:
    assert config.validate(yaml.safe_load(config.example())).warnings == ()
