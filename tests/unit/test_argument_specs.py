# SPDX-License-Identifier: GPL-3.0-or-later
"""The comparison of argument_specs with defaults sees each kind of disagreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sanity import argument_specs
from sanity.argument_specs import Role


def role(
    defaults: dict[str, Any], specs: dict[str, Any], tasks: tuple[str, ...] = ("main",)
) -> Role:
    return Role("driver", defaults, specs, frozenset(tasks))


PORT = {"driver_port": {"type": "int", "default": 1}}
CASES = {
    "agree": (role({"driver_port": 1}, {"main": PORT}), []),
    "required without default": (role({}, {"main": {"driver_port": {"required": True}}}), []),
    "optional without default": (role({}, {"main": {"driver_port": {"type": "int"}}}), []),
    "another entry point may share an option": (
        role({"driver_port": 1}, {"main": PORT, "check": PORT}, ("main", "check")),
        [],
    ),
    "a template has no type yet": (
        role(
            {"driver_port": "{{ flexai_port }}"},
            {"main": {"driver_port": {"type": "int", "default": "{{ flexai_port }}"}}},
        ),
        [],
    ),
    "values differ": (
        role({"driver_port": 2}, {"main": PORT}),
        ["driver: driver_port (main): defaults says 2, argument_specs says 1"],
    ),
    "true is not one": (
        role({"driver_port": True}, {"main": PORT}),
        ["driver: driver_port (main): defaults says True, argument_specs says 1"],
    ),
    "another entry point differs": (
        role(
            {"driver_port": 1},
            {"main": PORT, "check": {"driver_port": {"type": "int", "default": 3}}},
            ("main", "check"),
        ),
        ["driver: driver_port (check): defaults says 1, argument_specs says 3"],
    ),
    "undocumented": (
        role({"driver_port": 1, "driver_x": 0}, {"main": PORT}),
        ["driver: driver_x is in defaults, but no entry point documents it"],
    ),
    "not in defaults": (
        role({}, {"main": PORT}),
        ["driver: driver_port (main): defaults says nothing, argument_specs says 1"],
    ),
    "required with default": (
        role({"driver_port": 1}, {"main": {"driver_port": {"type": "int", "required": True}}}),
        ["driver: driver_port (main) is required, and yet defaults says 1"],
    ),
    "wrong type": (
        role({"driver_port": "1"}, {"main": {"driver_port": {"type": "int", "default": "1"}}}),
        ["driver: driver_port (main) is of type int, and its default is '1'"],
    ),
    "unknown type": (
        role({}, {"main": {"driver_port": {"type": "number"}}}),
        ["driver: driver_port (main) has the unknown type number"],
    ),
    "foreign name": (
        role({"port": 1}, {"main": {"port": {"type": "int", "default": 1}}}),
        ["driver: port (main) does not begin with driver_"],
    ),
    "no tasks": (
        role({"driver_port": 1}, {"main": PORT, "gone": {}}),
        ["driver: entry point gone has no tasks/gone.yml"],
    ),
    "no main": (
        role({"driver_port": 1}, {"check": PORT}, ("check",)),
        ["driver: argument_specs has no entry point main"],
    ),
    "no specs": (
        role({}, {}),
        ["driver: meta/argument_specs.yml is missing or names no entry point"],
    ),
}


@pytest.mark.parametrize(("given", "wanted"), CASES.values(), ids=CASES.keys())
def test_problems(given: Role, wanted: list[str]) -> None:
    assert argument_specs.problems(given) == wanted


def test_a_role_is_read_from_its_files(tmp_path: Path) -> None:
    for name, text in {
        "defaults/main.yml": "driver_port: 1\n",
        "meta/argument_specs.yml": "argument_specs: {main: {options: {driver_port: {default: 1}}}}",
        "tasks/main.yml": "[]\n",
    }.items():
        path = tmp_path / "driver" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = argument_specs.load(tmp_path / "driver")
    assert found == role({"driver_port": 1}, {"main": {"driver_port": {"default": 1}}})
