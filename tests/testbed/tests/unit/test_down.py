# SPDX-License-Identifier: GPL-3.0-or-later
"""Which traces belong to a testbed."""

from __future__ import annotations

import pytest
from testbed import down

# As `iptables -S` prints it beside a testbed in 10.89.64.0/24 and a stranger in 10.89.65.0/24.
LISTING = """\
-P FORWARD ACCEPT
-N NETAVARK-05F70341078AC
-N NETAVARK-AAAAAAAAAAAAA
-A POSTROUTING -s 10.89.64.0/24 -j NETAVARK-05F70341078AC
-A POSTROUTING -s 10.89.65.0/24 -j NETAVARK-AAAAAAAAAAAAA
-A NETAVARK-05F70341078AC -d 10.89.64.0/24 -j ACCEPT
-A NETAVARK-05F70341078AC ! -d 224.0.0.0/4 -j MASQUERADE
-A NETAVARK-AAAAAAAAAAAAA -d 10.89.65.0/24 -j ACCEPT
-A INPUT -s 0.0.0.0/0 -m comment --comment "all of 10.0.0.0/8" -j ACCEPT
"""


def test_only_rules_of_the_own_subnet_are_found() -> None:
    assert down.rules_of(LISTING, ["10.89.64.0/24"], "demo") == [
        "-A POSTROUTING -s 10.89.64.0/24 -j NETAVARK-05F70341078AC",
        "-A NETAVARK-05F70341078AC -d 10.89.64.0/24 -j ACCEPT",
    ]


def test_rules_are_known_by_the_network_in_netavarks_comment() -> None:
    def rule(network: str) -> str:
        return f'-A POSTROUTING -m comment --comment "name: {network} id: 4fa9" -j X'

    listing = "\n".join(map(rule, ["demo-00ff00", "demo-roles-00ff00", "demo", "demo-00ff00a"]))
    assert down.rules_of(listing, [], "demo") == [rule("demo-00ff00")]
    assert down.rules_of(listing, [], "demo-roles") == [rule("demo-roles-00ff00")]


def test_a_chain_no_rule_jumps_to_is_left_over() -> None:
    assert down.empty_chains(LISTING) == []
    without_jump = LISTING.replace(
        "-A POSTROUTING -s 10.89.64.0/24 -j NETAVARK-05F70341078AC\n", ""
    )
    assert down.empty_chains(without_jump) == ["NETAVARK-05F70341078AC"]


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("10.89.64.0/24", True),
        ("10.89.64.17", True),
        ("10.89.64.17/24", True),
        ("10.89.65.17/24", False),
        # A wider network is somebody else's, even where ours lies in it.
        ("10.89.0.0/16", False),
        ("0.0.0.0/0", False),
        ("fd00::1/64", False),
        ("ACCEPT", False),
        ("", False),
    ],
)
def test_belongs(address: str, ours: bool) -> None:
    assert down.belongs(["10.89.64.0/24"], address) is ours


def test_traces_list_everything_but_the_subnets() -> None:
    traces = down.Traces(
        containers=("abc",), rules=("nat -A X",), subnets=frozenset({"10.0.0.0/8"})
    )
    assert traces.lines() == ["containers: abc", "rules: nat -A X"]
