# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Kubernetes on the testbed's hosts: ``up`` makes or mends it, ``status`` looks.

layout, config, units, state decide and are pure; orders turns them into one order per host, which
``on_host`` carries out there; this file is the sequence. Nothing needs taking down: a cluster ends
with its hosts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xpubuild.cache import Cache, place, say

from ..errors import TestbedError
from ..hosts import Host, Testbed
from ..recipes import containerd, coredns, cri_dockerd, kubernetes, pause
from . import dns, on_host, state
from .api import Api, Unreachable
from .config import CONTROL_PLANE_ROLE, kubeconfig
from .layout import Layout, plan
from .orders import ENGINE_PROGRAMS, Delivered, Image, admin, make_order
from .pki import Store

Say = Callable[[str], None]
# Below a host's /var/lib, which the machine sees too (``Host.directory``/var-lib).
DELIVERED = "testbed"
READY_SECONDS = 120
POLL_SECONDS = 0.3
SHOWN = 4
# Engines that no system of the testbed has a package of.
ENGINES = {"containerd-2": containerd.build, "cri-dockerd": cri_dockerd.build}
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _lay(source: Path, target: Path) -> None:
    """The name tells the version, so what is there is right and stays."""
    if not target.exists():
        place(source, target)


def _deliver_engines(testbed: Testbed, cluster: Layout, cache: Cache) -> dict[str, str]:
    """Lay the engines that some node has from us onto its host: engine → directory there."""
    directories = {}
    for node in cluster.nodes:
        if node.engine not in ENGINES:
            continue
        built = ENGINES[node.engine](cache)
        place_at = f"{DELIVERED}/{node.engine}-{built.name[:12]}"
        for name in ENGINE_PROGRAMS[node.engine]:
            _lay(built / name, testbed.host(node.name).directory / "var-lib" / place_at / name)
        directories[node.engine] = f"/var/lib/{place_at}"
    return directories


def _deliver_image(hosts: Iterable[Host], built: Path, name: str, archive: str) -> Image:
    """Lay an image where *hosts* see it; beside its archive lies its digest."""
    source = built / archive
    target = f"{DELIVERED}/images/{source.stem}-{built.name[:12]}.tar"
    for host in hosts:
        _lay(source, host.directory / "var-lib" / target)
    digest = source.with_suffix(".digest").read_text(encoding="utf-8").strip()
    return Image(name, digest, f"/var/lib/{target}")


def _deliver(testbed: Testbed, cluster: Layout, cache: Cache) -> Delivered:
    """Lay programs and images where the hosts see them, under names that tell versions."""
    hosts = [testbed.host(node.name) for node in cluster.nodes]
    programs = kubernetes.build(cache)
    binaries = f"{DELIVERED}/kubernetes-{programs.name[:12]}"
    for host in hosts:
        for name in kubernetes.PROGRAMS:
            _lay(programs / name, host.directory / "var-lib" / binaries / name)
    master = testbed.host(cluster.control_plane.name)
    return Delivered(
        binaries=f"/var/lib/{binaries}",
        pause=_deliver_image(hosts, pause.build(cache), pause.IMAGE, pause.ARCHIVE),
        dns=_deliver_image([master], coredns.build(cache), coredns.IMAGE, coredns.ARCHIVE),
        engines=_deliver_engines(testbed, cluster, cache),
    )


def _carry_out(host: Host, document: dict[str, Any]) -> list[str]:
    """Have the host carry out its order; what it had to change."""
    program = Path(on_host.__file__).read_text(encoding="utf-8")
    done = host.exec(["python3", "-c", program], input=json.dumps(document), timeout=120)
    return list(json.loads(done.stdout)["changed"])


def few(names: list[str]) -> str:
    """The first of *names*, and how many more: a first ``up`` changes dozens of files."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _configure(testbed: Testbed, cluster: Layout, store: Store, delivered: Delivered) -> list[str]:
    # Orders are made one after another: two threads must not issue the same certificate.
    orders = [
        (testbed.host(node.name), make_order(cluster, node, store, delivered))
        for node in cluster.nodes
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        changes = list(pool.map(lambda pair: _carry_out(*pair), orders))
    return [
        f"{node.name}: {len(changed)} changes: {few(changed)}"
        for node, changed in zip(cluster.nodes, changes, strict=True)
        if changed
    ]


def _api(testbed: Testbed, cluster: Layout) -> Api:
    node = cluster.control_plane
    return Api(node.name, node.address, testbed.state_dir / "pki")


def _write_kubeconfig(testbed: Testbed, cluster: Layout, store: Store) -> Path:
    identity = admin()
    authority = store.authority().certificate
    text = kubeconfig(cluster, identity.name, authority, store.pair(identity))
    path = testbed.state_dir / "kubeconfig"
    scratch = path.with_name(".kubeconfig.new")
    scratch.touch(mode=0o600)
    scratch.write_text(text, encoding="utf-8")
    scratch.rename(path)
    return path


def _journal(testbed: Testbed, unit: str, names: Iterable[str]) -> str:
    """The last words of *unit* on some hosts, for the error that says they never came up."""
    parts = []
    for name in names:
        argv = ["journalctl", "--unit", unit, "--lines=5", "--no-pager", "--output=cat"]
        parts.append(f"{name}: {testbed.host(name).exec(argv, check=False).stdout.rstrip()}")
    return "\n".join(parts)


def _wait_for(missing: Callable[[], dict[str, str]], deadline: float, tell: Say) -> dict[str, str]:
    """Wait until *missing* (thing → why) is empty; what still is missing at the deadline."""
    told: set[str] = set()
    while found := missing():
        if set(found) != told:
            told = set(found)
            tell(f"waiting for {', '.join(found)}")
        if time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)
    return {}


def _not_ready(api: Api, wanted: dict[str, str]) -> dict[str, str]:
    """Nodes, and what pods need before the first can be created. *wanted*: node → boot id."""
    try:
        missing = state.waiting_for(wanted, [state.read_node(node) for node in api.nodes()])
        if not api.exists("/api/v1/namespaces/default/serviceaccounts/default"):
            missing[f"controllers on {api.name}"] = "no service account default/default yet"
    except Unreachable as error:
        return {f"API server on {api.name}": str(error)}
    return missing


def _wait_for_api(testbed: Testbed, api: Api, deadline: float, tell: Say) -> None:
    def missing() -> dict[str, str]:
        reason = api.ready()
        return {f"API server on {api.name}": reason} if reason else {}

    for what, reason in _wait_for(missing, deadline, tell).items():
        raise TestbedError(
            f"{what} is not ready after {READY_SECONDS} s: {reason}\n"
            + _journal(testbed, "kube-apiserver", [api.name]),
            f"python -m testbed logs {api.name} -u kube-apiserver --name {testbed.name}",
        )


def _wait_for_nodes(
    testbed: Testbed, cluster: Layout, api: Api, deadline: float, tell: Say
) -> None:
    names = [node.name for node in cluster.nodes]
    wanted = {name: testbed.host(name).get(BOOT_ID).decode().strip() for name in names}
    missing = _wait_for(lambda: _not_ready(api, wanted), deadline, tell)
    if not missing:
        return
    reasons = "; ".join(f"{what}: {reason}" for what, reason in missing.items())
    down = [name for name in names if name in missing]
    raise TestbedError(
        f"the cluster is not ready after {READY_SECONDS} s: {reasons}\n"
        + _journal(testbed, "kubelet", down),
        f"python -m testbed logs {(down or names)[0]} --name {testbed.name}",
    )


def _install_dns(testbed: Testbed, cluster: Layout, api: Api, image: str, tell: Say) -> None:
    """Apply the cluster DNS and wait until it answers: whoever uses the testbed may count on it."""
    for thing in dns.objects(cluster, image):
        api.apply(dns.path(thing), thing)

    def missing() -> dict[str, str]:
        reason = dns.waiting_for(api.get(dns.DEPLOYMENT))
        return {f"cluster DNS on {api.name}": reason} if reason else {}

    for what, reason in _wait_for(missing, time.monotonic() + READY_SECONDS, tell).items():
        raise TestbedError(
            f"{what} is not ready after {READY_SECONDS} s: {reason}",
            f"python -m testbed exec {api.name} --name {testbed.name} -- "
            f"kubectl -n {dns.NAMESPACE} describe pods",
        )


def wait_ready(testbed: Testbed, tell: Say = say) -> None:
    """Wait until pods can be made and every node has reported from its host's present boot."""
    cluster = plan(testbed)
    deadline = time.monotonic() + READY_SECONDS
    api = _api(testbed, cluster)
    _wait_for_api(testbed, api, deadline, tell)
    _wait_for_nodes(testbed, cluster, api, deadline, tell)


def up(testbed: Testbed, cache: Cache, tell: Say = say) -> Path:
    """Make the cluster the topology asks for, or what is missing of it; its kubeconfig."""
    cluster = plan(testbed)
    delivered = _deliver(testbed, cluster, cache)
    store = Store(testbed.state_dir / "pki", testbed.name)
    path = _write_kubeconfig(testbed, cluster, store)
    tell(f"configuring {len(cluster.nodes)} nodes, Kubernetes {kubernetes.VERSION}")
    for line in _configure(testbed, cluster, store, delivered):
        tell(line)
    wait_ready(testbed, tell)
    api = _api(testbed, cluster)
    api.label_node(cluster.control_plane.name, CONTROL_PLANE_ROLE, "")
    _install_dns(testbed, cluster, api, delivered.dns.name, tell)
    tell(f"{len(cluster.nodes)} nodes ready; kubeconfig {path}")
    return path


def status(testbed: Testbed) -> dict[str, Any]:
    """What the cluster says of itself; never raises for a cluster that is down."""
    cluster = plan(testbed)
    api = _api(testbed, cluster)
    document: dict[str, Any] = {"endpoint": cluster.endpoint, "api": "ready", "nodes": []}
    if not (api.pki / "admin.crt").exists():
        return {**document, "api": "never brought up"}
    if reason := api.ready():
        return {**document, "api": reason}
    nodes = [state.read_node(node) for node in api.nodes()]
    return {**document, "nodes": [asdict(node) for node in nodes]}
