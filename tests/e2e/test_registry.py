# SPDX-License-Identifier: GPL-3.0-or-later
"""A site with a registry of its own: images go there once, and the nodes pull them from it.

The registry is Debian's docker-registry, over TLS, open to nobody without a password.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from testbed.artefacts import publish_all
from testbed.cluster import pki
from testbed.hosts import Host, load
from xpubuild import debian
from xpubuild.cache import Cache

from e2e.platform import ROOT, TOPOLOGY, Platform, Run, must, recap

# A cluster of its own, several minutes.
pytestmark = pytest.mark.soak

PORT, USER = 5000, "node"
# Where the registry's root file system lies on its host, as the host and the machine see it.
PLACE = "/var/lib/registry-root"
SECRET, NAMESPACES = "pull", ("xpu", "volcano-system")
CONFIGURATION = f"""\
version: 0.1
storage: {{filesystem: {{rootdirectory: /images}}}}
http:
  addr: :{PORT}
  tls: {{certificate: /tls.crt, key: /tls.key}}
auth:
  htpasswd: {{realm: site, path: /passwords}}
"""
HOSTS_TOML = """\
server = "https://{address}"

[host."https://{address}"]
  capabilities = ["pull", "resolve"]
  ca = "/etc/containerd/certs.d/{address}/ca.crt"
"""


@dataclass(frozen=True)
class Registry:
    """A registry that runs. ``address`` is ``ip:port``."""

    address: str
    password: str
    authority: bytes


def start_registry(host: Host) -> Registry:
    """Have it as a unit of *host*, in a root file system of its own."""
    rootfs = debian.rootfs(Cache(), "bookworm", ["docker-registry", "apache2-utils"])
    place = host.directory / "var-lib" / Path(PLACE).name
    place.mkdir()
    subprocess.run(["tar", "-xf", rootfs, "-C", place, "--numeric-owner"], check=True)
    now = datetime.now(UTC)
    authority = pki.make_authority("registry e2e", now)
    pair = pki.issue(authority, pki.Identity("registry", "registry", addresses=[host.address]), now)
    password = secrets.token_hex(16)
    host.put(f"{PLACE}/tls.crt", pair.certificate)
    host.put(f"{PLACE}/tls.key", pair.key, 0o600)
    host.put(f"{PLACE}/config.yml", CONFIGURATION.encode())
    hashed = host.exec(["chroot", PLACE, "htpasswd", "-inB", USER], input=password).stdout
    host.put(f"{PLACE}/passwords", hashed.encode(), 0o600)
    run = ["systemd-run", "--unit=registry", f"--property=RootDirectory={PLACE}"]
    host.exec([*run, "/usr/bin/docker-registry", "serve", "/config.yml"])
    return Registry(f"{host.address}:{PORT}", password, authority.certificate)


def trust(host: Host, registry: Registry) -> None:
    """What a site does on its nodes, or has done: containerd knows the registry's authority."""
    place = f"/etc/containerd/certs.d/{registry.address}"
    host.put(f"{place}/ca.crt", registry.authority)
    host.put(f"{place}/hosts.toml", HOSTS_TOML.format(address=registry.address).encode())


def pull_secrets(registry: Registry) -> dict[str, Any]:
    """The namespaces with the site's secret, as a site has them before its first run."""
    auth = base64.b64encode(f"{USER}:{registry.password}".encode()).decode()
    config = {"auths": {registry.address: {"auth": auth}}}
    data = {".dockerconfigjson": base64.b64encode(json.dumps(config).encode()).decode()}
    items: list[dict[str, Any]] = []
    for name in NAMESPACES:
        items.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/dockerconfigjson",
                "metadata": {"name": SECRET, "namespace": name},
                "data": data,
            }
        )
    return {"apiVersion": "v1", "kind": "List", "items": items}


@dataclass(frozen=True)
class Site:
    """A site after its first run, and what that run printed."""

    platform: Platform
    registry: Registry
    variables: str
    first: Run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    platform = Platform(f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-reg")
    down = [sys.executable, "-m", "testbed", "down", "--name", platform.name]
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    subprocess.run(down, cwd=ROOT, check=True)  # what a killed earlier run may have left
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", platform.name])
    testbed = load(platform.name)
    (control_plane,) = testbed.by_role("control-plane")
    registry = start_registry(control_plane)
    for host in testbed.hosts:
        trust(host, registry)
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(pull_secrets(registry)))
    authority = tmp_path_factory.mktemp("registry") / "ca.crt"
    authority.write_bytes(registry.authority)
    variables = json.dumps(
        {
            "images_registry": f"{registry.address}/flexai",
            "images_registry_username": USER,
            "images_registry_password": registry.password,
            "images_registry_ca_file": str(authority),
            "images_pull_secret": SECRET,
        }
    )
    yield Site(
        platform, registry, variables, platform.playbook("site", "-vv", "--extra-vars", variables)
    )
    subprocess.run(down, cwd=ROOT, check=True)


def pods(site: Site, namespace: str) -> list[dict[str, Any]]:
    found = site.platform.kubectl("-n", namespace, "get", "pods", "-o", "json")
    return list(json.loads(found.output)["items"])


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_pod_of_ours_runs_an_image_that_its_node_pulled(site: Site, namespace: str) -> None:
    found = pods(site, namespace)
    assert found
    for pod in found:
        for status in pod["status"]["containerStatuses"]:
            assert status["ready"], (pod["metadata"]["name"], status)
            assert status["imageID"].startswith(f"{site.registry.address}/flexai/"), status
    events = site.platform.kubectl("-n", namespace, "get", "events", "-o", "json")
    pulled = [event for event in json.loads(events.output)["items"] if event["reason"] == "Pulled"]
    assert any("Successfully pulled image" in event["message"] for event in pulled)


def test_nothing_was_imported_on_a_node(site: Site) -> None:
    for host in load(site.platform.name).by_role("worker"):
        listed = host.exec(["ctr", "-n", "k8s.io", "images", "ls", "-q"]).stdout.split()
        ours = [name for name in listed if "gpu-device-plugin" in name or "vc-" in name]
        assert all(site.registry.address in name for name in ours), ours
        assert host.exec(["test", "-e", "/var/lib/flexai-xpu/images.json"], check=False).rc != 0


def test_the_password_is_in_no_output(site: Site) -> None:
    basic = base64.b64encode(f"{USER}:{site.registry.password}".encode()).decode()
    for secret in (site.registry.password, basic):
        assert secret not in site.first.output


def test_a_second_run_pushes_nothing_and_changes_nothing(site: Site) -> None:
    again = site.platform.playbook("site", "--extra-vars", site.variables)
    assert {host["changed"] for host in recap(again.output).values()} == {0}


def test_who_has_no_password_gets_no_image(site: Site) -> None:
    (control_plane,) = load(site.platform.name).by_role("control-plane")
    name = f"{site.registry.address}/flexai/gpu-device-plugin:v1.0"
    refused = control_plane.exec(
        ["ctr", "images", "pull", "--hosts-dir", "/etc/containerd/certs.d", name], check=False
    )
    assert refused.rc != 0
    assert "authorization failed" in refused.stderr + refused.stdout or "401" in refused.stderr


def test_slices_were_tried_from_inside_pods_and_are_right(site: Site) -> None:
    verdict = site.platform.verdict()
    assert verdict["ready"]
    (cluster,) = (node for node in verdict["nodes"] if node["name"] == "cluster")
    (gpupool,) = (part for part in cluster["components"] if part["name"] == "gpupool")
    assert gpupool["state"] == "ok", gpupool
