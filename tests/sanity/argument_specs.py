# SPDX-License-Identifier: GPL-3.0-or-later
"""Each role says every default twice, for Ansible and for people; here the two are compared.

``defaults/main.yml`` is what takes effect, ``meta/argument_specs.yml`` is what is documented and
checked. They must name the same variables with the same values, for every entry point.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
ABSENT = object()
# What a value may be in YAML for each type of an option.
TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "dict": (dict,),
    "float": (float, int),
    "int": (int,),
    "list": (list,),
    "path": (str,),
    "raw": (object,),
    "str": (str,),
}


@dataclass(frozen=True)
class Role:
    """What the files of one role say. ``specs`` maps an entry point to its options."""

    name: str
    defaults: Mapping[str, Any]
    specs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    task_files: frozenset[str]


def problems(role: Role) -> list[str]:
    """Every disagreement, as a sentence that names the variable and both values."""
    if not role.specs:
        return [f"{role.name}: meta/argument_specs.yml is missing or names no entry point"]
    return [f"{role.name}: {problem}" for problem in _problems(role)]


def _problems(role: Role) -> Iterator[str]:
    if "main" not in role.specs:
        yield "argument_specs has no entry point main"
    for entry, options in role.specs.items():
        if entry not in role.task_files:
            yield f"entry point {entry} has no tasks/{entry}.yml"
        for name, option in options.items():
            yield from _option_problems(role, entry, name, option)
    documented = {name for options in role.specs.values() for name in options}
    for name in sorted(set(role.defaults) - documented):
        yield f"{name} is in defaults, but no entry point documents it"


def _option_problems(role: Role, entry: str, name: str, option: Mapping[str, Any]) -> Iterator[str]:
    where = f"{name} ({entry})"
    default = role.defaults.get(name, ABSENT)
    documented = option.get("default", ABSENT)
    if not name.startswith((f"{role.name}_", "flexai_")):
        yield f"{where} does not begin with {role.name}_"
    if option.get("required"):
        if default is not ABSENT:
            yield f"{where} is required, and yet defaults says {default!r}"
        if documented is not ABSENT:
            yield f"{where} is required, and yet has a default: {documented!r}"
        return
    # 1 == True in Python and not in YAML, so types are compared with the values.
    if (type(default), default) != (type(documented), documented):
        yield f"{where}: defaults says {_said(default)}, argument_specs says {_said(documented)}"
    yield from _type_problem(where, option, documented)


def _type_problem(where: str, option: Mapping[str, Any], value: Any) -> Iterator[str]:
    kind = option.get("type", "str")
    if kind not in TYPES:
        yield f"{where} has the unknown type {kind}"
    elif value is not ABSENT and not _is_template(value) and not _fits(kind, value):
        yield f"{where} is of type {kind}, and its default is {value!r}"


def _fits(kind: str, value: Any) -> bool:
    if isinstance(value, bool) and kind != "raw":
        return kind == "bool"
    return value is None or isinstance(value, TYPES[kind])


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def _said(value: Any) -> str:
    return "nothing" if value is ABSENT else repr(value)


def _load(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def load(directory: Path) -> Role:
    """Read the role in *directory*."""
    specs = _load(directory / "meta/argument_specs.yml").get("argument_specs", {})
    return Role(
        name=directory.name,
        defaults=_load(directory / "defaults/main.yml"),
        specs={entry: spec.get("options", {}) for entry, spec in specs.items()},
        task_files=frozenset(path.stem for path in (directory / "tasks").glob("*.yml")),
    )


def main() -> int:
    """Check every role of the collection."""
    roles = [load(path) for path in sorted(ROLES.iterdir()) if path.is_dir()]
    found = [problem for role in roles for problem in problems(role)]
    print("\n".join(found) or f"{len(roles)} roles: argument_specs and defaults agree")
    if not roles:
        print(f"no role in {ROLES}: there is nothing to check, and that is wrong")
    return 1 if found or not roles else 0


if __name__ == "__main__":
    sys.exit(main())
