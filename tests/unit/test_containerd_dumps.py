# SPDX-License-Identifier: GPL-3.0-or-later
"""Our drop-in beside real `containerd config dump` texts: all that was in force, and our runtimes.

An imported file replaces a plugin's whole table, so what our file says of the CRI plugin is what is
in force. The comparison reads TOML, which the product itself does not.
"""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _containerd as containerd
from ansible_collections.flexai.xpu.plugins.module_utils._judge import _containerd_programs

from . import hostroot

DUMPS = sorted(hostroot.FIXTURES.glob("containerd-*-dump.toml"))
BASIS = "0" * 64
Table = dict[str, Any]


def plugin(document: Table) -> Table:
    """The plugin that holds the runtimes, by the version of the format."""
    name = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}[document["version"]]
    found: Table = document["plugins"][name]
    return found


def runtimes(document: Table) -> Table:
    found: Table = plugin(document)["containerd"]["runtimes"]
    return found


@pytest.mark.parametrize("file", DUMPS, ids=lambda file: file.stem)
def test_the_whole_table_of_the_plugin_stays_and_our_runtimes_are_runc_but_for_the_program(
    file: Path,
) -> None:
    base = tomllib.loads(file.read_text())
    ours = tomllib.loads(containerd.render(file.read_text(), BASIS))
    assert list(ours["plugins"].values()) == [plugin(ours)]
    runc = copy.deepcopy(runtimes(ours)["runc"])
    for name, program in containerd.RUNTIMES.items():
        runc["options"]["BinaryName"] = program
        assert runtimes(ours).pop(name) == runc
    assert plugin(ours) == plugin(base)


@pytest.mark.parametrize("file", DUMPS, ids=lambda file: file.stem)
def test_what_is_in_force_afterwards_is_the_same_base_and_is_judged_as_it_is(file: Path) -> None:
    """A dump that holds our runtimes already is rendered to the same text; the judge finds both."""
    base = file.read_text()
    rendered = containerd.render(base, BASIS)
    assert containerd.render(rendered, BASIS) == rendered
    programs = _containerd_programs(rendered)
    assert {name: programs[name] for name in containerd.RUNTIMES} == containerd.RUNTIMES
