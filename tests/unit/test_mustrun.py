# SPDX-License-Identifier: GPL-3.0-or-later
"""The must-run list: a skip is a failure exactly where the machine could have run the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mustrun
import pytest
from mustrun import Line, Skip

LINES = [Line(1, "a/test_x.py", ("root",)), Line(2, "b/test_y.py::test_one", ("root", "gpu"))]


def test_the_list_is_read_with_comments_and_needs() -> None:
    text = "# why\n\na/test_x.py root # note\nb/test_y.py::test_one root gpu\n"
    parsed = mustrun.parse(text, {"root", "gpu"})
    assert [(line.number, line.prefix, line.needs) for line in parsed] == [
        (3, "a/test_x.py", ("root",)),
        (4, "b/test_y.py::test_one", ("root", "gpu")),
    ]


def test_an_unknown_need_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"line 1: unknown need rot; known are gpu, root"):
        mustrun.parse("a/test_x.py rot", {"root", "gpu"})


@pytest.mark.parametrize(
    ("node", "have", "failed"),
    [
        ("a/test_x.py::test_any", {"root"}, True),
        ("a/test_x.py::test_any", set(), False),
        ("a/test_x.py", {"root"}, True),
        ("a/test_x.pyc::test_any", {"root"}, False),
        ("b/test_y.py::test_one[case]", {"root", "gpu"}, True),
        ("b/test_y.py::test_one", {"root"}, False),
        ("b/test_y.py::test_one_more", {"root", "gpu"}, False),
        ("c/test_z.py::test_any", {"root", "gpu"}, False),
    ],
)
def test_a_skip_counts_where_the_machine_could_run_it(
    node: str, have: set[str], failed: bool
) -> None:
    found = mustrun.violations(LINES, [Skip(node, "no podman")], have)
    assert bool(found) is failed
    if found:
        assert found[0].startswith(f"{node} was skipped (no podman), but this machine can run it")


def test_an_entry_without_its_test_is_named() -> None:
    collected = {"a/test_x.py::test_any", "b/test_y.py::test_renamed"}
    assert mustrun.vanished(LINES, collected) == [
        "must_run.txt line 2: b/test_y.py::test_one names no test; it was renamed or removed"
    ]
    assert mustrun.vanished(LINES, {"a/test_x.py::test_any"}) == []


def test_an_entry_without_its_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/test_x.py").touch()
    assert mustrun.missing_files(LINES, tmp_path) == [
        "must_run.txt line 2: b/test_y.py does not exist"
    ]


SUITES = {
    "a skipped test": "import pytest\n@pytest.mark.skip(reason='lazy')\ndef test_a(): pass\n",
    "a skipped file": "import pytest\npytest.skip('lazy', allow_module_level=True)\n",
    "a skip inside": "import pytest\ndef test_a(): pytest.skip('lazy')\n",
}


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES.keys())
@pytest.mark.parametrize(("need", "status"), [("linux", 1), ("gpu", 0)])
def test_pytest_itself_fails_and_says_why(
    tmp_path: Path, suite: str, need: str, status: int
) -> None:
    """The whole way: a suite of its own, with a list of its own, under a real pytest."""
    (tmp_path / "test_lazy.py").write_text(f"{suite}\n")
    (tmp_path / "test_busy.py").write_text("def test_b(): pass\n")
    (tmp_path / "must_run.txt").write_text(f"test_lazy.py::test_a {need}\n")
    (tmp_path / "conftest.py").write_text(
        "import mustrun, pathlib\n"
        "mustrun.LIST = pathlib.Path(__file__).parent / 'must_run.txt'\n"
        "mustrun.ROOT = mustrun.LIST.parent\n"
        "mustrun.NEEDS = {'linux': lambda: True, 'gpu': lambda: False}\n"
        "pytest_plugins = ['mustrun']\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(mustrun.__file__).parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    assert ("was skipped (lazy), but this machine can run it" in done.stdout) is bool(status)
