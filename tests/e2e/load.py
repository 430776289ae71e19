# SPDX-License-Identifier: GPL-3.0-or-later
"""Submits a crowd of pods to a testbed's cluster and brings back what became of each.

Acts as the owner of the pods would: a pod that the kubelet turned away at its door (the device
plugin was down just then) is made again. Calls wait for an API server that is away.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config

from e2e.mixed import DEFAULT_SCHEDULER, SHAPE_ANNOTATION, SHAPES, Fate, Pod
from e2e.platform import STATE, Platform, PlatformError
from e2e.referee import Card, Ledger, Owner, Seen, all_in_part, read_ledger

Answer = TypeVar("Answer")
Document = dict[str, Any]
POLL_S = 1.0
AWAY_S = 180
PATIENCE_S = 600
# What stands between the name of a pod that was made again and how often it was.
AGAIN = "-again"
PASSING_TROUBLE = (0, 429, 500, 502, 503, 504)
CONFLICT, NOT_FOUND = 409, 404
AT_ONCE = 8


class StuckError(AssertionError):
    """Pods that reached no end; the message holds their events."""


def persistently(call: Callable[[], Answer], limit_s: float = AWAY_S) -> Answer:
    """The answer of *call*, however often the API server has to be asked."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return call()
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            passing = getattr(error, "status", None) or 0
            if passing not in PASSING_TROUBLE or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


@dataclass
class Outcome:
    """What became of a crowd."""

    seen: list[Seen] = field(default_factory=list)
    # Pod name → the event that says why it was refused.
    refused: dict[str, str] = field(default_factory=dict)
    # Pods that were turned away or evicted and that were made again → why.
    turned_away: dict[str, str] = field(default_factory=dict)
    # Pods that waited for a whole card where those that stay have a part of each → what said so.
    given_up: dict[str, str] = field(default_factory=dict)


def _seconds(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else math.inf


def statuses(pod: Mapping[str, Any]) -> dict[str, Document]:
    """Container → its status, of those that run at the same time."""
    found = pod.get("status", {}).get("containerStatuses") or ()
    return {status["name"]: status for status in found}


def _until(status: Mapping[str, Any]) -> float:
    """When a container ended; the kubelet tells whole seconds, rounded down."""
    ended = status.get("state", {}).get("terminated") or {}
    return _seconds(ended.get("finishedAt"))


class Crowd:
    """Pods of one namespace on one testbed."""

    def __init__(self, platform: Platform, namespace: str) -> None:
        self.platform, self.namespace = platform, namespace
        # Untyped: what is asked for comes back as plain JSON, which costs a tenth of its classes.
        self.api: Any = client.CoreV1Api(config.new_client_from_config(str(platform.kubeconfig)))
        self.pods: dict[str, Pod] = {}
        self.outcome = Outcome()
        self._reports: dict[Owner, Document] = {}

    def open(self) -> None:
        """Make the namespace, and wait until pods can be made in it."""
        body = {"metadata": {"name": self.namespace}}
        self._unless(CONFLICT, lambda: self.api.create_namespace(body))
        deadline = time.monotonic() + AWAY_S
        while not persistently(lambda: self._list("service_account")):
            if time.monotonic() > deadline:
                raise PlatformError(f"namespace {self.namespace} got no service account")
            time.sleep(POLL_S)

    def seen_by_webhook(self) -> bool:
        """Whether the admission webhook sees pods of the namespace: it notes what one asks for."""
        probe = Pod("probe", SHAPES[0], DEFAULT_SCHEDULER, None).manifest()
        answer = persistently(
            lambda: self.api.create_namespaced_pod(
                self.namespace, probe, dry_run="All", _preload_content=False
            )
        )
        return SHAPE_ANNOTATION in json.loads(answer.data)["metadata"].get("annotations", {})

    def close(self) -> None:
        """Remove the namespace and wait until nothing of it is left, slices included."""
        self._unless(NOT_FOUND, lambda: self.api.delete_namespace(self.namespace))
        self._until_true(lambda: not self._list("pod"), "pods of the namespace are gone")

    def submit(self, pods: Sequence[Pod]) -> None:
        """Make pods, several at a time."""
        self.pods.update({pod.name: pod for pod in pods})
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._create, pods))

    def node_ends(self, node: str) -> None:
        """To be called before a node goes down: nothing runs there any more from now on."""
        now = time.time()
        self._end(lambda one: one.node == node, now)

    def delete(self, names: Iterable[str]) -> None:
        """Delete pods, also as what they were made again; those gone already are fine."""
        wanted = set(names)
        for name in list(self.pods):
            if wanted & {name, name.partition(AGAIN)[0]}:
                self._delete(name)

    def _delete(self, name: str) -> None:
        del self.pods[name]
        self._end(lambda one: one.pod == name, time.time())
        self._unless(NOT_FOUND, lambda: self.api.delete_namespaced_pod(name, self.namespace))

    def settle(self, patience_s: float = PATIENCE_S) -> Outcome:
        """Wait until every pod has met its fate; StuckError names those that did not."""
        deadline = time.monotonic() + patience_s
        while open_pods := self._look():
            if time.monotonic() > deadline:
                raise StuckError(self._describe(open_pods))
            time.sleep(POLL_S)
        return self.outcome

    def containers_on(self, node: str) -> set[str]:
        """Ids of the containers that run on a node, as the API server has heard."""
        return {
            str(status["containerID"])
            for pod in self._list("pod")
            if pod["spec"].get("nodeName") == node
            for status in statuses(pod).values()
            if "running" in status["state"]
        }

    def running(self) -> dict[Owner, tuple[str, str]]:
        """Running containers of pods that stay → (container id, start), which must not change.

        Pods with an init container that holds devices are left out: a kubelet that starts again
        admits what runs without a look at its devices, but an init container doesn't run any more,
        and until the device plugin has registered again the kubelet turns the whole pod away
        (1.33, ``devicesToAllocate``).
        """
        found = {}
        for pod in self._list("pod"):
            mine = self.pods.get(pod["metadata"]["name"])
            if mine is None or mine.shape.fate is not Fate.STAYS or mine.shape.init:
                continue
            for name, status in statuses(pod).items():
                if running := status["state"].get("running"):
                    owner = (pod["metadata"]["uid"], name)
                    found[owner] = (status["containerID"], running["startedAt"])
        return found

    def alive(self) -> set[Owner]:
        """Containers, init ones too, of pods that have not ended: who may hold a slice."""
        return {
            (pod["metadata"]["uid"], container["name"])
            for pod in self.every_pod()
            if pod.get("status", {}).get("phase") in ("Pending", "Running")
            for part in ("initContainers", "containers")
            for container in pod["spec"].get(part) or ()
        }

    def every_pod(self) -> list[Document]:
        """All pods of the cluster: others hold slices, too."""
        answer = persistently(lambda: self.api.list_pod_for_all_namespaces(_preload_content=False))
        items: list[Document] = json.loads(answer.data)["items"]
        return items

    def look_again(self, names: Iterable[str]) -> list[Seen]:
        """What running pods see now, asked from inside them."""
        found = []
        for pod in self._list("pod"):
            name = pod["metadata"]["name"]
            if name not in names:
                continue
            for container in statuses(pod):
                said = self.platform.kubectl(
                    "-n", self.namespace, "exec", name, "-c", container, "--",
                    "python3", "/workload/witness.py", "look",
                )  # fmt: skip
                # kubectl remarks on its own connection, beside what the container said.
                (answer,) = (line for line in said.output.splitlines() if line.startswith("{"))
                found.append(self._seen(pod, container, json.loads(answer)))
        return found

    def events(self) -> dict[str, list[str]]:
        """Pod UID → what its events say."""
        found: dict[str, list[str]] = defaultdict(list)
        for event in self._list("event"):
            text = f"{event.get('reason')}: {event.get('message')}"
            found[event["involvedObject"].get("uid", "")].append(text)
        return found

    def _list(self, kind: str) -> list[Document]:
        call = getattr(self.api, f"list_namespaced_{kind}")
        answer = persistently(lambda: call(self.namespace, _preload_content=False))
        items: list[Document] = json.loads(answer.data)["items"]
        return items

    def _unless(self, status: int, call: Callable[[], Any]) -> None:
        """Call; *status* says that it was done before, by a call that got no answer."""
        try:
            persistently(call)
        except client.ApiException as error:
            if error.status != status:
                raise

    def _until_true(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > deadline:
                raise PlatformError(f"after {PATIENCE_S} s it isn't so that {what}")
            time.sleep(POLL_S)

    def _create(self, pod: Pod) -> None:
        body = pod.manifest()
        try:
            self._unless(CONFLICT, lambda: self.api.create_namespaced_pod(self.namespace, body))
        except client.ApiException as error:  # an admission webhook's word
            if pod.shape.fate is not Fate.REFUSED or not re.search(
                pod.shape.reason, str(error.body)
            ):
                raise
            self.outcome.refused[pod.name] = str(error.body)

    def _look(self) -> list[Document]:
        """Take in what is new; the pods that have not met their fate yet."""
        listed = {pod["metadata"]["name"]: pod for pod in self._list("pod")}
        events: dict[str, list[str]] = {}
        if any(
            pod.shape.waits
            or (pod.shape.fate is Fate.REFUSED and pod.name not in self.outcome.refused)
            for pod in self.pods.values()
        ):
            events = self.events()
        still_open = [
            pod
            for pod in list(self.pods.values())
            if not self._met(pod, listed.get(pod.name), events)
        ]
        given_up = self._give_up([pod for pod in still_open if pod.shape.waits], listed, events)
        return [
            listed.get(pod.name, {"metadata": {"name": pod.name}})
            for pod in still_open
            if pod.name not in given_up
        ]

    def _give_up(
        self,
        waiting: Sequence[Pod],
        listed: Mapping[str, Document],
        events: Mapping[str, list[str]],
    ) -> set[str]:
        """Delete those that wait for good, so that the ids they hold are free for others."""
        staying = {
            listed[pod.name]["metadata"]["uid"]
            for pod in self.pods.values()
            if pod.shape.fate is Fate.STAYS and pod.name in listed
        }
        done = set()
        for pod in waiting:
            uid = listed.get(pod.name, {}).get("metadata", {}).get("uid", "")
            said = [text for text in events.get(uid, ()) if re.search(pod.shape.waits, text)]
            if not said or pod.node is None:
                continue
            cards = cards_of(self.platform, [pod.node]).values()
            if all_in_part(ledgers(self.platform, [pod.node]), staying, cards):
                self.outcome.given_up[pod.name] = said[-1]
                self._delete(pod.name)
                done.add(pod.name)
        return done

    def _met(self, pod: Pod, found: Document | None, events: Mapping[str, list[str]]) -> bool:
        if pod.name in self.outcome.refused:
            return True
        if found is None:  # the device plugin evicts who finds no room for a minute
            self._make_again(pod, "Evicted: no room in time")
            return False
        if pod.shape.fate is Fate.REFUSED:
            return self._was_refused(pod, found, events)
        if found["status"].get("phase") == "Failed":
            status = found["status"]
            self._make_again(pod, f"{status.get('reason')}: {status.get('message')}")
            return False
        wanted = "Running" if pod.shape.fate is Fate.STAYS else "Succeeded"
        return found["status"].get("phase") == wanted and self._has_reported(pod, found)

    def _was_refused(self, pod: Pod, found: Document, events: Mapping[str, list[str]]) -> bool:
        started = [name for name, status in statuses(found).items() if status.get("containerID")]
        if started:
            raise StuckError(f"{pod.name} had to be refused; {started} started")
        reason = pod.shape.reason
        if found["status"].get("phase") == "Failed":
            # Turned away at the kubelet's door, for a reason of its own that may have come first.
            reason = f"{reason}|^{found['status'].get('reason')}: "
        said = [
            text for text in events.get(found["metadata"]["uid"], ()) if re.search(reason, text)
        ]
        if said:
            self.outcome.refused[pod.name] = said[-1]
            # As its owner would: while it is there, the ids that it holds and the room that its
            # PodGroup has in Volcano's queue are kept from others.
            self._unless(
                NOT_FOUND, lambda: self.api.delete_namespaced_pod(pod.name, self.namespace)
            )
        return bool(said)

    def _make_again(self, pod: Pod, why: str) -> None:
        self.outcome.turned_away[pod.name] = why
        self.delete([pod.name])
        stem, _, tries = pod.name.partition(AGAIN)
        self.submit([replace(pod, name=f"{stem}{AGAIN}{int(tries or 0) + 1}")])

    def _has_reported(self, pod: Pod, found: Document) -> bool:
        known = statuses(found)
        if set(known) != set(pod.asks):
            return False
        return all(self._report(found, known[name]) for name in pod.asks)

    def _report(self, found: Document, status: Document) -> bool:
        """Keep what the container printed; again when it was started anew since."""
        owner = (found["metadata"]["uid"], status["name"])
        known = self._reports.get(owner)
        if known and known["id"] == status["containerID"]:
            self._end(lambda one: (one.uid, one.container) == owner, _until(status))
            return True
        try:
            answer = persistently(
                lambda: self.api.read_namespaced_pod_log(
                    found["metadata"]["name"],
                    self.namespace,
                    container=status["name"],
                    _preload_content=False,
                )
            )
        except client.ApiException:  # created, not started; or its kubelet is away
            return False
        text = answer.data.decode(errors="replace")
        if not text.endswith("}\n"):
            return False
        self._end(lambda one: (one.uid, one.container) == owner, time.time())
        self._reports[owner] = {"id": status["containerID"]}
        document = json.loads(text.splitlines()[-1])
        one = self._seen(found, status["name"], document)
        self.outcome.seen.append(replace(one, until=_until(status)))
        return True

    def _end(self, whose: Callable[[Seen], bool], until: float) -> None:
        """What they saw ended at *until* at the latest."""
        self.outcome.seen = [
            replace(one, until=min(one.until, until)) if whose(one) else one
            for one in self.outcome.seen
        ]

    def _seen(self, found: Document, container: str, document: Document) -> Seen:
        name = found["metadata"]["name"]
        return Seen(
            node=found["spec"]["nodeName"],
            pod=name,
            uid=found["metadata"]["uid"],
            container=container,
            ask=self.pods[name].asks[container],
            document=document,
        )

    def _describe(self, pods: Sequence[Document]) -> str:
        events = self.events()
        lines = []
        for pod in pods:
            said = events.get(pod["metadata"].get("uid", ""), [])[-3:]
            phase = pod.get("status", {}).get("phase", "not listed")
            lines.append(f"{pod['metadata']['name']} ({phase}): {' | '.join(said) or 'no event'}")
        return f"{len(pods)} pods are stuck:\n" + "\n".join(lines)


def hosts_with_cards(platform: Platform) -> list[str]:
    """Names of the nodes with cards; the testbed names nodes as hosts."""
    state = json.loads(platform.state_file.read_text(encoding="utf-8"))
    return [host["name"] for host in state["hosts"] if host["cards"] and "worker" in host["roles"]]


def cards_of(platform: Platform, hosts: Iterable[str]) -> dict[str, Card]:
    """UUID → card, in the driver's own words on the host."""
    found = {}
    for host in hosts:
        told = platform.on_host(host, "sh", "-c", "cat /proc/driver/nvidia/gpus/*/information")
        uuids = re.findall(r"GPU UUID:\s*(\S+)", told.output)
        minors = re.findall(r"Device Minor:\s*(\d+)", told.output)
        query = ("--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits")
        listed = platform.on_host(host, "nvidia-smi", *query).output.strip().splitlines()
        memory = dict(line.split(", ") for line in listed)
        for uuid, minor in zip(uuids, minors, strict=True):
            found[uuid] = Card(uuid, host, int(minor), int(memory[uuid]))
    return found


def ledgers(platform: Platform, hosts: Iterable[str]) -> Ledger:
    """The node ledgers of all hosts, read as the hosts' disks hold them."""
    found = {}
    for host in hosts:
        path = STATE / platform.name / "hosts" / host / "var-lib" / "xpu" / "ledger.json"
        if path.exists():
            found.update(read_ledger(json.loads(path.read_text(encoding="utf-8"))))
    return found
