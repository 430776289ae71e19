# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Kubernetes on the testbed's hosts: ``up`` makes or mends it, ``status`` looks.

layout, config, units, state decide and are pure; orders turns them into one order per host, which
``on_host`` carries out there; this file is the sequence. Nothing needs taking down: a cluster ends
with its hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xpubuild.cache import Cache, say

from ..errors import TestbedError
from ..hosts import Host, Testbed
from ..recipes import kubernetes, pause
from . import on_host, state
from .api import Api, Unreachable
from .config import CONTROL_PLANE_ROLE, kubeconfig
from .layout import Layout, plan
from .orders import Delivered, admin, make_order
from .pki import Store

Say = Callable[[str], None]
# Below a host's /var/lib, which the machine sees too (``Host.directory``/var-lib).
DELIVERED = "testbed"
READY_SECONDS = 120
POLL_SECONDS = 0.3
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _link(source: Path, target: Path) -> None:
    """Hard link: 400 MB of programs are on the machine once, however many hosts there are."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.new")
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:
        shutil.copy2(source, scratch)
    scratch.rename(target)


def _deliver(hosts: Iterable[Host], cache: Cache) -> Delivered:
    """Lay programs and pause image where every host sees them, under names that tell versions."""
    programs, image = kubernetes.build(cache), pause.build(cache)
    binaries = f"{DELIVERED}/kubernetes-{programs.name[:12]}"
    archive = f"{DELIVERED}/images/pause-{image.name[:12]}.tar"
    for host in hosts:
        var_lib = host.directory / "var-lib"
        for name in kubernetes.PROGRAMS:
            _link(programs / name, var_lib / binaries / name)
        _link(image / pause.ARCHIVE, var_lib / archive)
    return Delivered(
        binaries=f"/var/lib/{binaries}",
        pause_name=pause.IMAGE,
        pause_digest=(image / pause.DIGEST).read_text().strip(),
        pause_archive=f"/var/lib/{archive}",
    )


def _carry_out(host: Host, document: dict[str, Any]) -> list[str]:
    """Have the host carry out its order; what it had to change."""
    program = Path(on_host.__file__).read_text(encoding="utf-8")
    done = host.exec(["python3", "-c", program], input=json.dumps(document), timeout=120)
    return list(json.loads(done.stdout)["changed"])


def _configure(testbed: Testbed, cluster: Layout, store: Store, delivered: Delivered) -> list[str]:
    # Orders are made one after another: two threads must not issue the same certificate.
    orders = [
        (testbed.host(node.name), make_order(cluster, node, store, delivered))
        for node in cluster.nodes
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        changes = list(pool.map(lambda pair: _carry_out(*pair), orders))
    return [
        f"{node.name}: {len(changed)} changes"
        for node, changed in zip(cluster.nodes, changes, strict=True)
        if changed
    ]


def _api(testbed: Testbed, cluster: Layout) -> Api:
    return Api(cluster.control_plane.address, testbed.state_dir / "pki")


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


def _wait_for_api(testbed: Testbed, cluster: Layout, deadline: float) -> None:
    api = _api(testbed, cluster)
    while reason := api.ready():
        if time.monotonic() > deadline:
            name = cluster.control_plane.name
            raise TestbedError(
                f"the API server on {name} is not ready: {reason}\n"
                + _journal(testbed, "kube-apiserver", [name]),
                f"python -m testbed logs {name} -u kube-apiserver",
            )
        time.sleep(POLL_SECONDS)


def _not_ready(api: Api, wanted: dict[str, str]) -> dict[str, str]:
    try:
        return state.waiting_for(wanted, [state.read_node(node) for node in api.nodes()])
    except Unreachable as error:
        return dict.fromkeys(wanted, f"the API server does not answer: {error}")


def _wait_for_nodes(testbed: Testbed, cluster: Layout, deadline: float, tell: Say) -> None:
    api = _api(testbed, cluster)
    wanted = {
        node.name: testbed.host(node.name).get(BOOT_ID).decode().strip() for node in cluster.nodes
    }
    told = -1
    while missing := _not_ready(api, wanted):
        if len(wanted) - len(missing) != told:
            told = len(wanted) - len(missing)
            tell(f"{told} of {len(wanted)} nodes ready; waiting for {', '.join(missing)}")
        if time.monotonic() > deadline:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            raise TestbedError(
                f"nodes are not ready after {READY_SECONDS} s: {reasons}\n"
                + _journal(testbed, "kubelet", missing),
                f"python -m testbed logs {next(iter(missing))} -u kubelet",
            )
        time.sleep(POLL_SECONDS)


def wait_ready(testbed: Testbed, tell: Say = say) -> None:
    """Wait until the API server answers and every node reports from its host's present boot."""
    cluster = plan(testbed)
    deadline = time.monotonic() + READY_SECONDS
    _wait_for_api(testbed, cluster, deadline)
    _wait_for_nodes(testbed, cluster, deadline, tell)


def up(testbed: Testbed, cache: Cache, tell: Say = say) -> Path:
    """Make the cluster the topology asks for, or what is missing of it; its kubeconfig."""
    cluster = plan(testbed)
    delivered = _deliver((testbed.host(node.name) for node in cluster.nodes), cache)
    store = Store(testbed.state_dir / "pki", testbed.name)
    path = _write_kubeconfig(testbed, cluster, store)
    tell(f"configuring {len(cluster.nodes)} nodes, Kubernetes {kubernetes.VERSION}")
    for line in _configure(testbed, cluster, store, delivered):
        tell(line)
    wait_ready(testbed, tell)
    _api(testbed, cluster).label_node(cluster.control_plane.name, CONTROL_PLANE_ROLE, "")
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
