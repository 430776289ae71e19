# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine the demo's group has: vLLM itself, or the stub and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e import serving
from e2e.platform import Run
from xpubuild.cache import Cache, Recipe
from xpubuild.recipes import vllm_cpu


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, libnuma, and memory."""
    monkeypatch.setenv("FLEXAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(serving, "numa", lambda: Path("/usr/lib/libnuma.so.1"))
    monkeypatch.setattr(serving, "available_kib", lambda: 9 << 20)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment, as an earlier `make test-syshax` left it."""

    class Noted(Cache):
        def get(self, recipe: Recipe) -> Path:
            place = self.path(recipe)
            (place / "site").mkdir(parents=True)
            return place

    return vllm_cpu.build(Noted()) / "site"


def test_nothing_is_fetched_for_it(tmp_path: Path) -> None:
    engine = serving.best(tmp_path)
    assert engine.name == (
        "a stub engine (vLLM's environment isn't in the cache; `make test-syshax` puts it there)"
    )
    assert not (tmp_path / "cache").exists()


def test_vllm_itself_where_the_machine_has_it(tmp_path: Path, built: Path) -> None:
    assert serving.best(tmp_path) == serving.Engine("", built)
    assert serving.best(tmp_path).name == "vLLM 0.32.0 on the CPU"


@pytest.mark.usefixtures("built")
def test_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "available_kib", lambda: (7 << 20) + 1)
    assert serving.best(tmp_path).name == (
        "a stub engine (7 GiB of memory are free, two members of vLLM take 8)"
    )


@pytest.mark.usefixtures("built")
def test_a_library_that_the_machine_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "numa", lambda: None)
    assert "no libnuma.so.1" in serving.best(tmp_path).why


@pytest.mark.usefixtures("built")
def test_6_gb_are_not_copied_to_another_file_system() -> None:
    assert "on two file systems" in serving.best(Path("/proc")).why


def test_the_statuss_lines_are_found_in_ansibles_output() -> None:
    output = (
        'ok: [cp1] => {\n    "msg": [\n        "service  group",\n        "s/p  p[0]"\n    ]\n}\n'
    )
    assert serving.table(Run(0, output)) == ["service  group", "s/p  p[0]"]
