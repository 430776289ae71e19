# SPDX-License-Identifier: Apache-2.0
"""Which Go packages are watched for races, and when."""

from __future__ import annotations

from xpubuild import gotest


def watched(module: str, *, soak: bool) -> list[str]:
    return [words[-1] for words in gotest.commands(module, soak=soak) if "-race" in words]


def test_all_of_a_module_is_watched_for_races_where_that_is_quick() -> None:
    assert watched("cluster", soak=False) == ["./..."]
    assert gotest.commands("cluster", soak=True) == []


def test_what_compiles_a_scheduler_anew_is_watched_in_the_soak() -> None:
    assert watched("volcano", soak=False) == ["./place/..."]
    assert watched("volcano", soak=True) == ["./bridge/..."]
    # Without the detector it runs every time.
    assert ["test", "./..."] in gotest.commands("volcano")
