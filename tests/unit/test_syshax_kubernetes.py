# SPDX-License-Identifier: GPL-3.0-or-later
"""sysHAX on Kubernetes: what the API's own schemas take, in one pod or two."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.syshax_manifests import syshax_manifests

OPTIONS: dict[str, Any] = {
    "model": "/home/models/ds-32b",
    "gpu": {"image": "vllm/vllm-openai:v0.27.0"},
    "cpu": {"image": "vllm/vllm-openai-cpu:v0.27.0"},
}
VERSIONS = sorted(
    {tuple(map(int, v.split(".")[:2])) for v in kubernetes_validate.utils.all_versions()}
)


def objects(**more: Any) -> list[dict[str, Any]]:
    return syshax_manifests(OPTIONS, cpus=32, **more)


def with_conductor(options: dict[str, Any] | None = None, **more: Any) -> dict[str, dict[str, Any]]:
    """The conductor's objects, by kind."""
    rendered = syshax_manifests(
        {**OPTIONS, **(options or {})}, cpus=32, conductor_image="registry/syshax:1", **more
    )
    ours = [o for o in rendered if o["metadata"]["name"] == "syshax-conductor"]
    assert rendered[-len(ours) :] == ours  # the engines come first
    return {o["kind"]: o for o in ours}


def pods(rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [o["spec"]["template"]["spec"] for o in rendered if o["kind"] == "Deployment"]


@pytest.mark.parametrize("layout", [{}, {"layout": "two-pods", "node": "n1"}])
def test_kubernetes_knows_every_field_oldest_and_newest(layout: dict[str, str]) -> None:
    for document in objects(**layout, conductor_image="registry/syshax:1"):
        for version in (v for v in (VERSIONS[0], VERSIONS[-1]) if v >= (1, 20)):
            text = f"{version[0]}.{version[1]}"
            assert kubernetes_validate.validate(document, text, strict=True) == text


def test_one_pod_shares_its_own_memory_two_share_the_nodes() -> None:
    (pod,) = pods(objects())
    assert [c["name"] for c in pod["containers"]] == ["vllm-gpu", "vllm-cpu"]
    (shm,) = [v for v in pod["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    both = pods(objects(layout="two-pods", node="n1"))
    assert len(both) == 2
    for pod in both:
        assert pod["hostIPC"] is True
        assert pod["nodeSelector"] == {"kubernetes.io/hostname": "n1"}
        assert {"name": "shm", "hostPath": {"path": "/dev/shm", "type": "Directory"}} in pod[
            "volumes"
        ]


@pytest.mark.parametrize("layout", [{}, {"layout": "two-pods", "node": "n1"}])
def test_every_container_is_guaranteed_so_the_static_cpu_manager_gives_whole_cores(
    layout: dict[str, str],
) -> None:
    for pod in pods(objects(**layout)):
        for container in pod["containers"]:
            amounts = container["resources"]
            assert amounts["requests"] == amounts["limits"]
            assert str(int(amounts["limits"]["cpu"])) == amounts["limits"]["cpu"]


def test_the_accelerators_engine_gets_the_cores_that_the_site_gives_it() -> None:
    (pod,) = pods(objects(gpu_cpus="500m"))
    cores = {c["name"]: c["resources"]["limits"]["cpu"] for c in pod["containers"]}
    assert cores == {"vllm-gpu": "500m", "vllm-cpu": "32"}


@pytest.mark.parametrize("layout", [{}, {"layout": "two-pods", "node": "n1"}])
def test_a_service_reaches_each_engine(layout: dict[str, str]) -> None:
    rendered = objects(**layout)
    labels = [
        o["spec"]["template"]["metadata"]["labels"] for o in rendered if o["kind"] == "Deployment"
    ]
    services = {o["metadata"]["name"]: o["spec"] for o in rendered if o["kind"] == "Service"}
    assert set(services) == {"syshax-gpu", "syshax-cpu"}
    for name, port in (("syshax-gpu", 8001), ("syshax-cpu", 8002)):
        assert services[name]["selector"] in labels
        assert services[name]["ports"][0]["port"] == port


def test_the_conductor_reaches_the_engines_by_their_services() -> None:
    options = {"gpu": {**OPTIONS["gpu"], "port": 9001}, "settings": {"decider.max_num_seqs": 8}}
    made = with_conductor(options)
    assert set(made) == {"ConfigMap", "Deployment", "Service"}
    text = made["ConfigMap"]["data"]["config.yaml"]
    services = yaml.safe_load(text)["services"]
    assert services["gpu"] == {"host": "syshax-gpu", "port": 9001}
    assert services["cpu"] == {"host": "syshax-cpu", "port": 8002}
    assert yaml.safe_load(text)["decider"]["max_num_seqs"] == 8
    assert services["conductor"] == {"host": "0.0.0.0", "port": 8010}
    (container,) = pods([made["Deployment"]])[0]["containers"]
    assert container["args"] == ["--config", "/etc/syshax/config.yaml", "run"]
    (mount,) = container["volumeMounts"]
    assert mount == {"name": "config", "mountPath": "/etc/syshax", "readOnly": True}
    assert (
        made["Service"]["spec"]["selector"]
        == (made["Deployment"]["spec"]["template"]["metadata"]["labels"])
    )


def test_the_conductor_is_nobody_and_writes_nothing() -> None:
    (pod,) = pods([with_conductor()["Deployment"]])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_other_settings_are_another_pod_and_the_same_settings_the_same() -> None:
    def template(options: dict[str, Any]) -> Any:
        return with_conductor(options)["Deployment"]["spec"]["template"]

    assert template({}) == template({})
    assert template({}) != template({"settings": {"decider.max_num_seqs": 8}})


def test_without_its_image_the_conductor_is_left_out() -> None:
    assert not [o for o in objects() if "conductor" in o["metadata"]["name"]]


@pytest.mark.parametrize(
    ("options", "more", "complaint"),
    [
        ({}, {"layout": "three-pods"}, "layout: 'three-pods' is unknown"),
        ({}, {"layout": "two-pods"}, "node is empty"),
        ({"modle": "x"}, {}, "modle unknown"),
        ({"model": ""}, {}, "syshax_model is empty"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    options: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=complaint):
        syshax_manifests({**OPTIONS, **options}, cpus=8, **more)
