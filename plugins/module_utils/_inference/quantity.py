# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Kubernetes' quantities as exact numbers (pure)."""

from __future__ import annotations

import re
import typing as t
from fractions import Fraction

_PARTS = re.compile(r"^([+-]?[\d.]+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d{1,2}))?$")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def amount(quantity: t.Any) -> Fraction | None:
    """A quantity as a number; None where it is none."""
    match = _PARTS.match(str(quantity))
    if match is None:
        return None
    number, suffix, exponent = match.groups()
    try:
        value = Fraction(number)
    except ValueError:
        return None
    if suffix in _BINARY:
        return value * Fraction(1024 ** _BINARY[suffix])
    power = int(exponent) if exponent else _DECIMAL.get(suffix or "", 0)
    return value * Fraction(10**power) if power >= 0 else value / Fraction(10**-power)


def same(one: t.Any, other: t.Any) -> bool:
    """Whether two quantities are one amount, however they are written."""
    return one == other or (amount(one) is not None and amount(one) == amount(other))
