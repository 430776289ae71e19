# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Documents against a table of types: unknown keys, wrong types, missing keys, all at once (pure).

A table is ``{type: {key: type}}``; ``key!`` must be there. A type is a name of the table or

``string boolean integer number``
    as in JSON, nothing coerced: the API server coerces nothing either
``int-or-string quantity object``
    as Kubernetes means them; ``object`` is anything with keys
``1..`` or ``0..65535``
    a whole number in these bounds; text that is one counts (templates of Ansible give text)
``switch``
    true or false; text that says so counts
``a|b|c`` or ``=a``
    one of these words, this very word
``[T]`` and ``{T}``
    a list of T, an object whose every value is a T

:func:`check` answers what is wrong, and the document without what is wrong, so that whoever looks
further never meets a wrong type.
"""

from __future__ import annotations

import difflib
import re
import typing as t

from .problem import HIDDEN, MISSING, Problem

Types = t.Mapping[str, t.Mapping[str, str]]
Clean = t.Any

# Values under these keys may be secrets: problems about them tell the type only.
_PRIVATE = {"env", "args", "command", "data", "stringData"}
_RANGE = re.compile(r"^(\d+)\.\.(\d*)$")
_WORDS = re.compile(r"^(=.+|[^|\[{]+(\|[^|]+)+)$")
_QUANTITY = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?\d+))?$")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_SHOWN_KEYS = 12

# Type → (Python types that it admits, what it is called).
_PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "text (put numbers and yes/no in quotes)"),
    "boolean": ((bool,), "true or false"),
    "integer": ((int,), "a whole number, without quotes"),
    "number": ((int, float), "a number, without quotes"),
    "int-or-string": ((int, str), "a whole number or text"),
    "object": ((dict,), "keys with values"),
}


class _Wrong(Exception):
    """A value that its type does not admit; never leaves this module."""

    def __init__(self, allowed: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed


def _plain(value: t.Any, kind: str) -> t.Any:
    admitted, called = _PLAIN[kind]
    # For Python true is a number; for Kubernetes it is not.
    if not isinstance(value, admitted) or (isinstance(value, bool) and kind != "boolean"):
        raise _Wrong(called)
    return value


def _quantity(value: t.Any, _kind: str) -> t.Any:
    called = "a quantity of Kubernetes, as 2, 500m or 16Gi"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _Wrong(called)
    if isinstance(value, str) and not _QUANTITY.match(value):
        raise _Wrong(called)
    return value


def _whole(value: t.Any, kind: str) -> int:
    low, high = kind.split("..")
    called = f"a whole number from {low} to {high}" if high else f"a whole number from {low} on"
    if isinstance(value, str) and re.match(r"^\d{1,18}$", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(called)
    if value < int(low) or (high and value > int(high)):
        raise _Wrong(called)
    return value


def _switch(value: t.Any, _kind: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    raise _Wrong("true or false")


def _word(value: t.Any, kind: str) -> t.Any:
    words = kind.lstrip("=").split("|")
    if value not in words:
        raise _Wrong(", ".join(words))
    return value


_Reader = t.Callable[[t.Any, str], t.Any]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys(_PLAIN, _plain),
    "quantity": _quantity,
    "switch": _switch,
}


def _reader(kind: str) -> _Reader | None:
    """What reads values of a type; None where it is a list, an object or a name of the table."""
    if kind not in _READERS:
        if _RANGE.match(kind):
            _READERS[kind] = _whole
        elif _WORDS.match(kind):
            _READERS[kind] = _word
    return _READERS.get(kind)


class _Check:
    def __init__(self, types: Types) -> None:
        self._types = types
        self.problems: list[Problem] = []

    def _add(self, path: str, value: object, allowed: str, remedy: str) -> None:
        private = not isinstance(value, type(MISSING)) and any(
            part.partition("[")[0] in _PRIVATE for part in path.split(".")
        )
        self.problems.append(Problem(path, HIDDEN if private else value, allowed, remedy))

    def _empty(self, kind: str) -> Clean:
        """Stands where a wrong item of a list was, so that the others keep their places."""
        if kind in self._types or kind[0] == "{" or kind == "object":
            return {}
        return [] if kind[0] == "[" else ""

    def walk(self, path: str, value: t.Any, kind: str) -> Clean:
        """The value without what is wrong in it; None where nothing remains."""
        reader = _reader(kind)
        if reader is not None:
            try:
                return reader(value, kind)
            except _Wrong as wrong:
                self._add(path, value, wrong.allowed, "correct the value")
                return None
        if kind[0] == "[":
            return self._list(path, value, kind[1:-1])
        if not isinstance(value, dict):
            self._add(path, value, "keys with values", "write it as keys with values")
            return None
        if kind[0] == "{":
            return self._map(path, value, kind[1:-1])
        return self._object(path, value, kind)

    def _list(self, path: str, value: t.Any, kind: str) -> Clean:
        if not isinstance(value, (list, tuple)):
            self._add(path, value, "a list", "write each item on a line of its own after a dash")
            return None
        clean = []
        for index, item in enumerate(value):
            read = None
            if item is None:
                self._add(f"{path}[{index}]", None, "no empty items", "fill the item or remove it")
            else:
                read = self.walk(f"{path}[{index}]", item, kind)
            clean.append(self._empty(kind) if read is None else read)
        return clean

    def _map(self, path: str, value: t.Mapping[t.Any, t.Any], kind: str) -> Clean:
        clean = {}
        for key, item in value.items():
            if not isinstance(key, str):
                self._add(path, HIDDEN, "keys that are text", "put the key in quotes")
            elif item is not None:
                read = self.walk(f"{path}.{key}", item, kind)
                if read is not None:
                    clean[key] = read
        return clean

    def _object(self, path: str, value: t.Mapping[t.Any, t.Any], kind: str) -> Clean:
        known = self._types[kind]
        clean = {}
        for key, item in value.items():
            wanted = known.get(key) or known.get(f"{key}!") if isinstance(key, str) else None
            if wanted is None:
                self._unknown(path, key, kind)
            elif item is not None:
                read = self.walk(f"{path}.{key}" if path else key, item, wanted)
                if read is not None:
                    clean[key] = read
        for key in known:
            if key[-1] == "!" and value.get(key[:-1]) is None:
                where = f"{path}.{key[:-1]}" if path else key[:-1]
                self._add(where, MISSING, f"needed in {path or 'the document'}", "write it")
        return clean

    def _unknown(self, path: str, key: t.Any, kind: str) -> None:
        known = [name.rstrip("!") for name in self._types[kind]]
        where = f"{path}.{key}" if path else str(key)
        near = difflib.get_close_matches(str(key), known, 1)
        deeper = [
            f"{name.rstrip('!')}.{key}"
            for name, inner in self._types[kind].items()
            if isinstance(key, str) and key in {k.rstrip("!") for k in self._types.get(inner, ())}
        ]
        if deeper:
            remedy = f"write {deeper[0]}: it belongs one level deeper"
        elif near:
            remedy = f"write {near[0]}"
        else:
            remedy = "remove it"
        shown = sorted(known)
        names = ", ".join(shown[:_SHOWN_KEYS]) + (" …" if len(shown) > _SHOWN_KEYS else "")
        # The value is not shown: what it is, and whether it is a secret, nobody knows.
        self.problems.append(Problem(where, HIDDEN, f"a known key ({names})", remedy))


def check(document: t.Any, types: Types, kind: str, path: str = "") -> tuple[Clean, list[Problem]]:
    """*document* as a *kind* of *types*: what of it is right, and what is wrong."""
    run = _Check(types)
    clean = run.walk(path, document, kind)
    return ({} if clean is None else clean), run.problems
