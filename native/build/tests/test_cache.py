# SPDX-License-Identifier: Apache-2.0
"""The build cache: the same inputs build once, a killed build leaves nothing to be mistaken."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from xpubuild.cache import Cache, Recipe, digest_tree, place


def recipe(text: str = "x", calls: list[str] | None = None) -> Recipe:
    def build(out: Path) -> None:
        if calls is not None:
            calls.append(text)
        (out / "result").write_text(text, encoding="utf-8")

    return Recipe("thing", {"text": text}, build)


def test_the_same_inputs_build_once(tmp_path: Path) -> None:
    calls: list[str] = []
    cache = Cache(tmp_path)
    first = cache.get(recipe("a", calls))
    assert cache.get(recipe("a", calls)) == first
    assert calls == ["a"]


def test_other_inputs_build_beside_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get(recipe("a")) != cache.get(recipe("b"))


def test_a_failed_build_leaves_no_result_and_may_be_tried_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def broken(out: Path) -> None:
        (out / "half").write_text("half", encoding="utf-8")
        raise RuntimeError("compiler died")

    with pytest.raises(RuntimeError, match="compiler died"):
        cache.get(Recipe("thing", {"text": "a"}, broken))
    assert not cache.path(recipe("a")).exists()
    assert (cache.get(recipe("a")) / "result").read_text(encoding="utf-8") == "a"


def test_a_killed_build_is_swept_by_the_next_of_the_same_inputs_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    room = tmp_path / "thing"
    killed = room / f".building-{recipe('a').key}-x1"
    at_work = room / f".building-{recipe('b').key}-x2"
    for scratch in (killed, at_work):
        (scratch / "half").mkdir(parents=True)
    cache.get(recipe("a"))
    assert not killed.exists()
    assert at_work.exists()


def test_two_callers_at_once_build_once(tmp_path: Path) -> None:
    calls: list[str] = []
    started, finish = threading.Event(), threading.Event()

    def slow(out: Path) -> None:
        calls.append("built")
        started.set()
        assert finish.wait(10)

    wanted = Recipe("thing", {"text": "a"}, slow)
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(Cache(tmp_path).get(wanted)))
        for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    finish.set()
    for thread in threads:
        thread.join(10)
    assert calls == ["built"]
    assert len(set(results)) == 1


@pytest.mark.parametrize("change", ["content", "name", "mode"])
def test_any_change_of_a_source_tree_changes_its_digest(tmp_path: Path, change: str) -> None:
    source = tmp_path / "src" / "main.c"
    source.parent.mkdir()
    source.write_text("int main;", encoding="utf-8")
    before = digest_tree([source.parent], tmp_path)
    if change == "content":
        source.write_text("int main2;", encoding="utf-8")
    elif change == "name":
        source.rename(source.with_name("other.c"))
    else:
        source.chmod(0o755)
    assert digest_tree([source.parent], tmp_path) != before


def test_a_misspelt_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        digest_tree([tmp_path / "nowhere"], tmp_path)


def test_a_result_is_placed_by_link_and_placing_it_again_leaves_nothing_beside(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "result", tmp_path / "used" / "here"
    source.write_text("result", encoding="utf-8")
    for _ in range(2):
        place(source, target)
    assert target.samefile(source)
    assert [path.name for path in target.parent.iterdir()] == ["here"]
