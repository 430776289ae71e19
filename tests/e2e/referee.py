# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges a crowd: what pods saw from inside, what they asked for, what the node's ledger says.

Pure. What pods saw is the truth; the ledger is a claim about it. Every function returns findings,
one sentence each; none means right.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2e.mixed import FULL_CORES, Ask

MIB = 1 << 20
# The driver keeps some of a card for itself: a tenant of all of it sees a little less.
OWN_USE = 0.95


@dataclass(frozen=True)
class Card:
    """A card as its host knows it."""

    uuid: str
    node: str
    minor: int
    memory_mib: int


@dataclass(frozen=True)
class Seen:
    """What one container saw (``workload/witness.py``), and for how long it had it."""

    node: str
    pod: str
    uid: str
    container: str
    ask: Ask
    document: Mapping[str, Any]
    until: float = math.inf

    @property
    def at(self) -> float:
        return float(self.document["at"])

    @property
    def who(self) -> str:
        return f"{self.pod}/{self.container} on {self.node}"

    @property
    def uuids(self) -> list[str]:
        return [str(card["uuid"]) for card in self.document["cards"]]


@dataclass(frozen=True)
class Share:
    """One share of the ledger."""

    uuid: str
    vid: int
    cores: int
    memory_mib: int


Owner = tuple[str, str]  # pod UID, container
Ledger = Mapping[Owner, Sequence[Share]]


def read_ledger(document: Mapping[str, Any]) -> dict[Owner, list[Share]]:
    """``/var/lib/xpu/ledger.json`` (docs/interfaces.md section 5)."""
    return {
        (entry["owner"]["pod_uid"], entry["owner"]["container"]): [
            Share(
                share["uuid"],
                share["vid"],
                share["cores_percent"],
                share["memory_mib"],
            )
            for share in entry["shares"]
        ]
        for entry in document["slices"] or ()
    }


def wrong_cards(seen: Iterable[Seen], cards: Mapping[str, Card]) -> list[str]:
    """Containers that got something else than they asked for, by what they saw themselves."""
    return [f"{one.who} {why}" for one in seen for why in _wrong(one, cards)]


def _wrong(one: Seen, cards: Mapping[str, Card]) -> list[str]:
    """Everything wrong with what one container saw."""
    if len(one.uuids) != one.ask.number:
        error = one.document["error"]
        return [f"asked for {one.ask.number} cards and sees {one.uuids} ({error})"]
    if len(set(one.uuids)) != len(one.uuids):
        return [f"sees one card twice: {one.uuids}"]
    strange = [uuid for uuid in one.uuids if uuid not in cards or cards[uuid].node != one.node]
    if strange:
        return [f"sees cards that its node doesn't have: {strange}"]
    found = []
    minors = sorted(cards[uuid].minor for uuid in one.uuids)
    if one.document["nodes"] != minors:
        found.append(f"has device nodes {one.document['nodes']}; its cards are {minors}")
    for card in one.document["cards"]:
        found += _wrong_memory(one, card["memory"], cards[card["uuid"]].memory_mib)
    if one.ask.number:
        found += _wrong_files(one)
    return found


def _wrong_memory(one: Seen, shown: int, whole_mib: int) -> list[str]:
    quota = one.ask.memory_mib_each
    if quota is None:
        least, most = int(OWN_USE * whole_mib * MIB), whole_mib * MIB
    else:
        least = most = quota * MIB
    if least <= shown <= most:
        return []
    return [f"is shown {shown} bytes of memory, not {least} to {most}"]


def _wrong_files(one: Seen) -> list[str]:
    text = one.document["files"].get("vgpu.config", "")
    if f"UsedCores:{one.ask.cores_each}\n" not in text:
        return [f"has vgpu.config {text!r} and asked for {one.ask.cores_each} % cores"]
    ids = one.document["files"].get("vgpu-ids.config", "").split()
    if sorted(line.rpartition("-")[0] for line in ids) != sorted(one.uuids):
        return [f"has vgpu-ids.config {ids} and sees {one.uuids}"]
    return []


def given_twice(seen: Sequence[Seen], cards: Mapping[str, Card]) -> list[str]:
    """Cards of which more was in use at some moment than they have, by what pods saw."""
    found = []
    for card in cards.values():
        users = [one for one in seen if card.uuid in one.uuids]
        for moment in sorted({one.at for one in users}):
            found += _over(card, [one for one in users if one.at <= moment < one.until])
    return sorted(set(found))


def _over(card: Card, users: Sequence[Seen]) -> list[str]:
    cores = sum(one.ask.cores_each for one in users)
    memory = sum(one.ask.memory_mib_each or card.memory_mib for one in users)
    if cores <= FULL_CORES and memory <= card.memory_mib and not _shared_whole(users):
        return []
    names = ", ".join(sorted(one.who for one in users))
    return [f"card {card.uuid} with {card.memory_mib} MiB held {cores} % and {memory} MiB: {names}"]


def _shared_whole(users: Sequence[Seen]) -> bool:
    return len(users) > 1 and any(one.ask.cores_each == FULL_CORES for one in users)


def overbooked(ledger: Ledger, cards: Mapping[str, Card]) -> list[str]:
    """Cards that the ledger itself promises more than once."""
    shares: dict[str, list[Share]] = defaultdict(list)
    for held in ledger.values():
        for share in held:
            shares[share.uuid].append(share)
    found = [f"the ledger names a card {uuid} that is nowhere" for uuid in shares.keys() - cards]
    for uuid in shares.keys() & cards.keys():
        held = shares[uuid]
        cores, memory = sum(s.cores for s in held), sum(s.memory_mib for s in held)
        if cores > FULL_CORES or memory > cards[uuid].memory_mib:
            found.append(f"the ledger promises {cores} % and {memory} MiB of card {uuid}")
        twice = [vid for vid, times in Counter(s.vid for s in held).items() if times > 1]
        if twice:
            found.append(f"the ledger uses virtual numbers {twice} of card {uuid} twice")
    return found


def unlike_the_ledger(seen: Iterable[Seen], ledger: Ledger) -> list[str]:
    """Running containers whose slice stands in the ledger otherwise, or not at all."""
    found = []
    for one in seen:
        held = sorted(share.uuid for share in ledger.get((one.uid, one.container), ()))
        if held != sorted(one.uuids):
            found.append(f"{one.who} sees {sorted(one.uuids)}; the ledger says {held}")
    return found


def all_in_part(ledger: Ledger, holders: Collection[str], cards: Iterable[Card]) -> bool:
    """Whether none of the *cards* is free of slices of *holders* (pod UIDs)."""
    taken = {share.uuid for (uid, _), held in ledger.items() if uid in holders for share in held}
    return all(card.uuid in taken for card in cards)


def leaked(ledger: Ledger, alive: Iterable[Owner]) -> list[str]:
    """Slices of the ledger whose container is gone."""
    return [
        f"slice of pod {uid}, container {container}: nobody has it any more"
        for uid, container in sorted(ledger.keys() - set(alive))
    ]
