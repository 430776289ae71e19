# SPDX-License-Identifier: Apache-2.0
"""The conductor's bundle: for every Python it runs on, exactly the pinned packages."""

from __future__ import annotations

import tarfile

import pytest
from xpubuild.cache import Cache
from xpubuild.recipes import syshax

PINS = """\
# a comment
a==1 ; python_full_version < '3.10' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
a==2 ; python_full_version >= '3.10' \\
    --hash=sha256:cc
b==3 ; sys_platform == 'win32' \\
    --hash=sha256:dd
"""


@pytest.mark.parametrize(
    ("python", "lines"),
    [
        ("3.9", ["a==1 --hash=sha256:aa --hash=sha256:bb"]),
        ("3.13", ["a==2 --hash=sha256:cc"]),
    ],
)
def test_conditions_are_those_of_the_target_not_of_the_builder(
    python: str, lines: list[str]
) -> None:
    assert list(syshax.lines_for(PINS, python, "x86_64")) == lines


def test_every_python_has_a_wheel_of_every_package_that_it_needs() -> None:
    with tarfile.open(syshax.bundle(Cache(), "x86_64")) as archive:
        names = [name.rpartition("/")[2] for name in archive.getnames()]
    wheels = [name for name in names if name.endswith(".whl")]
    text = syshax.REQUIREMENTS.read_text(encoding="utf-8")
    for python in syshax.PYTHONS:
        for line in syshax.lines_for(text, python, "x86_64"):
            name, _, version = line.split()[0].partition("==")
            tag = f"cp{python.replace('.', '')}-"
            fits = [
                wheel
                for wheel in wheels
                if wheel.lower().startswith(f"{name.replace('-', '_')}-{version}-")
                and ("-py3-none-any" in wheel or "-py2.py3-none-any" in wheel or tag in wheel)
            ]
            assert fits, (python, line)
    assert any(wheel.startswith("pip-") for wheel in wheels)
    assert any(wheel.startswith("flexai_syshax-") for wheel in wheels)
