# SPDX-License-Identifier: Apache-2.0
"""Chart gpupool, rendered by the Helm that the collection ships."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from xpubuild.cache import Cache
from xpubuild.recipes import charts, helm

CHART = charts.CHARTS / charts.NAME
RUNTIMES = ("containerd", "docker")
SYSTEMS = {
    "centos": "/usr/lib64",
    "rhel": "/usr/lib64",
    "openeuler": "/usr/lib64",
    "ubuntu": "/usr/lib/x86_64-linux-gnu",
    "debian": "/usr/lib/x86_64-linux-gnu",
}


@pytest.fixture(scope="module")
def program() -> Path:
    return helm.build(Cache()) / "helm"


def render(
    program: Path, *settings: str, api_versions: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    words += [word for version in api_versions for word in ("--api-versions", version)]
    return subprocess.run(
        [program, "template", "gpupool", CHART, *words], text=True, capture_output=True, check=False
    )


def objects(program: Path, *settings: str, api_versions: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the chart makes, by ``kind/name``; the webhook's is judged by test_chart_webhook.py."""
    done = render(program, "webhook.enabled=false", *settings, api_versions=api_versions)
    assert done.returncode == 0, done.stderr
    return {
        f"{document['kind']}/{document['metadata']['name']}": document
        for document in yaml.safe_load_all(done.stdout)
        if document
    }


def pod(rendered: dict[str, Any], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = rendered[f"DaemonSet/{name}"]["spec"]["template"]["spec"]
    return spec


def plugin(rendered: dict[str, Any]) -> dict[str, Any]:
    return pod(rendered, "gpu-device-plugin")


def client(rendered: dict[str, Any]) -> dict[str, Any]:
    return pod(rendered, "client-update")


def test_lint_is_strictly_clean(program: Path) -> None:
    done = subprocess.run(
        [program, "lint", "--strict", CHART], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


COMBINATIONS = list(itertools.product(RUNTIMES, SYSTEMS))


@pytest.mark.parametrize(("runtime", "system"), COMBINATIONS)
def test_every_runtime_and_system_renders(program: Path, runtime: str, system: str) -> None:
    rendered = objects(program, f"runtimeType={runtime}", f"osType={system}")
    assert {"DaemonSet/gpu-device-plugin", "DaemonSet/client-update"} <= set(rendered)
    volumes = {volume["name"]: volume for volume in plugin(rendered)["volumes"]}
    assert volumes["driver"]["hostPath"]["path"] == SYSTEMS[system]


def served_versions() -> list[str]:
    """The Kubernetes that the chart admits, of those whose schemas we have."""
    minimum = re.search(r">=1\.(\d+)\.", (CHART / "Chart.yaml").read_text())
    assert minimum
    known = {tuple(map(int, v.split(".")[:2])) for v in kubernetes_validate.utils.all_versions()}
    return [f"{major}.{minor}" for major, minor in sorted(known) if minor >= int(minimum[1])]


@pytest.mark.parametrize(("runtime", "system"), COMBINATIONS)
def test_every_object_is_strictly_what_kubernetes_knows(
    program: Path, runtime: str, system: str
) -> None:
    """Against the API's own schemas, oldest and newest; an unknown field is an error."""
    versions = served_versions()
    rendered = objects(program, f"runtimeType={runtime}", f"osType={system}")
    for name, document in rendered.items():
        for version in (versions[0], versions[-1]):
            assert kubernetes_validate.validate(document, version, strict=True) == version, name


def test_the_strict_schema_finds_a_misplaced_field(program: Path) -> None:
    """Upstream's chart put environment entries among the containers."""
    document = objects(program)["DaemonSet/gpu-device-plugin"]
    document["spec"]["template"]["spec"]["containers"].append({"name": "NODE_NAME", "value": "x"})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, served_versions()[-1], strict=True)


def test_runtime_docker_has_no_field_strategy(program: Path) -> None:
    """cri-dockerd passes no CDI names on, so slices would silently have no card."""
    assert render(program, "cdiStrategy=field").returncode == 0
    done = render(program, "runtimeType=docker", "cdiStrategy=field")
    assert done.returncode != 0
    assert "cdiStrategy" in done.stderr


def test_rights_are_those_that_are_used(program: Path) -> None:
    role = objects(program)["ClusterRole/gpupool-gpu-device-plugin"]
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
        (["pods"], ["get", "list", "watch"]),
        (["pods/eviction", "events"], ["create"]),
        (["nodes"], ["patch"]),
    ]
    everywhere = json.dumps(objects(program))
    assert '"*"' not in everywhere.replace('"operator": "Exists"', "")


def test_client_update_has_no_rights_but_to_write_its_directory(program: Path) -> None:
    spec = client(objects(program))
    assert spec["automountServiceAccountToken"] is False
    assert {"hostPID", "hostNetwork"}.isdisjoint(spec)
    assert [v["hostPath"]["path"] for v in spec["volumes"]] == ["/opt/xpu"]
    context = spec["containers"][0]["securityContext"]
    assert "privileged" not in context
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False


def test_client_update_can_write_where_selinux_is_enforced(program: Path) -> None:
    def labelled(system: str) -> bool:
        context = client(objects(program, f"osType={system}"))["containers"][0]["securityContext"]
        return "seLinuxOptions" in context

    assert {system for system in SYSTEMS if labelled(system)} == {"centos", "rhel", "openeuler"}


def test_client_update_can_be_left_out(program: Path) -> None:
    assert "DaemonSet/client-update" not in objects(program, "gpuClientUpdate.enabled=false")


def test_the_namespace_is_made_for_what_stands_in_it(program: Path) -> None:
    made = objects(program)["Namespace/xpu"]["metadata"]["labels"]
    assert made["pod-security.kubernetes.io/enforce"] == "privileged"
    assert "Namespace/xpu" not in objects(program, "basic.createNamespace=false")
    assert "Namespace/default" not in objects(program, "basic.namespace=default")


def test_every_daemon_says_whether_it_is_ready(program: Path) -> None:
    daemons = [o for o in objects(program).values() if o["kind"] == "DaemonSet"]
    for daemon in daemons:
        for container in daemon["spec"]["template"]["spec"]["containers"]:
            assert "readinessProbe" in container, daemon["metadata"]["name"]
            assert container["resources"]["requests"], daemon["metadata"]["name"]
            assert container["resources"]["limits"]["memory"], daemon["metadata"]["name"]


def test_a_registry_that_asks_who_pulls_gets_its_secrets(program: Path) -> None:
    rendered = objects(program, "imagePullSecrets[0].name=site-registry")
    for spec in (plugin(rendered), client(rendered)):
        assert spec["imagePullSecrets"] == [{"name": "site-registry"}]


def test_host_paths_are_the_same_inside(program: Path) -> None:
    """CDI entries name host paths, so what the plugin writes must lie at the same path."""
    spec = plugin(objects(program))
    hosts = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert set(hosts) == set(mounts)
    moved = {name for name in hosts if hosts[name] != mounts[name]}
    assert moved == {"driver"}


def test_pids_are_the_hosts(program: Path) -> None:
    """NVML's are, and the plugin compares them with those of the slices' processes."""
    spec = plugin(objects(program))
    assert spec["hostPID"] is True
    assert "--on-misuse=report" in spec["containers"][0]["args"]
    killing = plugin(objects(program, "onMisuse=kill"))
    assert "--on-misuse=kill" in killing["containers"][0]["args"]


def test_who_waits_for_room_and_who_has_no_class_is_the_sites_to_say(program: Path) -> None:
    usual = plugin(objects(program))["containers"][0]["args"]
    assert {"--default-class=", "--evict-after=60s", "--xid-quiet=5m"} <= set(usual)
    settings = ("defaultClass=elastic", "evictAfter=0s", "xidQuiet=1h30m", "onMisuse=evict")
    chosen = plugin(objects(program, *settings))["containers"][0]["args"]
    assert {
        "--default-class=elastic",
        "--evict-after=0s",
        "--xid-quiet=1h30m",
        "--on-misuse=evict",
    } <= set(chosen)


SECURITY = ("security.openshift.io/v1",)


def test_openshift_is_known_by_its_api_and_gets_constraints(program: Path) -> None:
    assert not [name for name in objects(program) if name.startswith("SecurityContext")]
    rendered = objects(program, api_versions=SECURITY)
    constraints = {
        document["users"][0].rpartition(":")[2]: document
        for name, document in rendered.items()
        if name.startswith("SecurityContextConstraints/")
    }
    assert sorted(constraints) == ["client-update", "gpu-device-plugin"]
    for name, document in constraints.items():
        spec = pod(rendered, name)
        assert spec["serviceAccountName"] == name
        assert document["allowHostPID"] is spec.get("hostPID", False)
        context = spec["containers"][0]["securityContext"]
        assert document["allowPrivilegedContainer"] is context.get("privileged", False)
        assert document["readOnlyRootFilesystem"] is context["readOnlyRootFilesystem"]
        used = {"hostPath" for volume in spec["volumes"] if "hostPath" in volume}
        token = set() if spec.get("automountServiceAccountToken") is False else {"projected"}
        assert set(document["volumes"]) == used | token
        assert document["allowHostNetwork"] is document["allowHostIPC"] is False


@pytest.mark.parametrize(
    ("value", "name"),
    [("gpuDevicePlugin", "gpu-device-plugin"), ("gpuClientUpdate", "client-update")],
)
def test_a_new_digest_under_the_same_tag_rolls_its_own_pods_alone(
    program: Path, value: str, name: str
) -> None:
    digest = f"sha256:{'ab' * 32}"
    before = objects(program)
    after = objects(program, f"{value}.image.digest={digest}")
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {f"DaemonSet/{name}"}
    template = after[f"DaemonSet/{name}"]["spec"]["template"]
    assert template["metadata"]["annotations"]["gpupool.com/image-digest"] == digest


def test_images_are_full_references(program: Path) -> None:
    rendered = objects(program, "basic.swr_addr=registry.site:5000/xpu")
    assert plugin(rendered)["containers"][0]["image"] == (
        "registry.site:5000/xpu/gpu-device-plugin:v1.0"
    )
    assert client(rendered)["containers"][0]["image"] == (
        "registry.site:5000/xpu/cuda-client-update:v1.0"
    )


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("osTyp=ubuntu", "osTyp"),
        ("osType=windows", "osType"),
        ("runtimeType=crio", "runtimeType"),
        ("deviceSplitCount=0", "deviceSplitCount"),
        ("onMisuse=shout", "onMisuse"),
        ("defaultClass=gold", "defaultClass"),
        ("evictAfter=60", "evictAfter"),
        ("xidQuiet=soon", "xidQuiet"),
        ("gpuDevicePlugin.image.tag=v1.0", "tag"),
        ("gpuClientUpdate.image.tag=v1.0", "tag"),
        ("gpuClientUpdate.intervalS=0", "intervalS"),
        ("imagePullSecrets[0]=site-registry", "imagePullSecrets"),
        ("basic.namespace=Not_A_Name", "namespace"),
    ],
)
def test_a_wrong_value_is_refused_by_name(program: Path, setting: str, named: str) -> None:
    done = render(program, setting)
    assert done.returncode != 0
    assert named in done.stderr


def test_packing_is_reproducible_and_installable(program: Path, tmp_path: Path) -> None:
    first = charts.build(Cache(tmp_path / "a")) / f"gpupool-{charts.version()}.tgz"
    second = charts.build(Cache(tmp_path / "b")) / first.name
    assert first.read_bytes() == second.read_bytes()
    assert first.name == "gpupool-0.1.0.tgz"
    done = subprocess.run(
        [program, "template", "gpupool", first], text=True, capture_output=True, check=False
    )
    assert done.stdout == render(program).stdout


def short_names(rendered: dict[str, Any]) -> tuple[list[str], list[Any], list[Any]]:
    """The flag, mounts and volumes by which the plugin gets the models' short names."""
    spec = plugin(rendered)
    (container,) = spec["containers"]
    return (
        [word for word in container["args"] if word.startswith("--gpu-type-config")],
        [mount for mount in container["volumeMounts"] if mount["name"] == "gpu-types"],
        [volume for volume in spec["volumes"] if volume["name"] == "gpu-types"],
    )


@pytest.mark.parametrize(("runtime", "system"), COMBINATIONS)
@pytest.mark.parametrize(
    ("settings", "flag", "mount", "source"),
    [
        ((), None, None, None),
        (("gpuTypeConfig.key=unused.yaml",), None, None, None),
        (
            ("gpuTypeConfig.configMap=models",),
            "--gpu-type-config=/gpu-types/gpu-types.yaml",
            "/gpu-types",
            {
                "configMap": {
                    "name": "models",
                    "items": [{"key": "gpu-types.yaml", "path": "gpu-types.yaml"}],
                }
            },
        ),
        (
            ("gpuTypeConfig.configMap=models", "gpuTypeConfig.key=a.b"),
            "--gpu-type-config=/gpu-types/a.b",
            "/gpu-types",
            {"configMap": {"name": "models", "items": [{"key": "a.b", "path": "a.b"}]}},
        ),
        (
            ("gpuTypeConfig.path=/etc/gpu types.yaml",),
            "--gpu-type-config=/gpu-types/gpu-types.yaml",
            "/gpu-types/gpu-types.yaml",
            {"hostPath": {"path": "/etc/gpu types.yaml", "type": "File"}},
        ),
    ],
)
def test_short_names_of_models_come_from_a_configmap_or_a_file(
    program: Path,
    runtime: str,
    system: str,
    settings: tuple[str, ...],
    flag: str | None,
    mount: str | None,
    source: dict[str, Any] | None,
) -> None:
    rendered = objects(program, f"runtimeType={runtime}", f"osType={system}", *settings)
    flags, mounts, volumes = short_names(rendered)
    assert flags == ([flag] if flag else [])
    wanted = {"name": "gpu-types", "mountPath": mount, "readOnly": True}
    assert mounts == ([wanted] if mount else [])
    assert volumes == ([{"name": "gpu-types", **source}] if source else [])
    version = served_versions()[0]
    document = rendered["DaemonSet/gpu-device-plugin"]
    assert kubernetes_validate.validate(document, version, strict=True) == version


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            ("gpuTypeConfig.configMap=models", "gpuTypeConfig.path=/etc/types"),
            'gpuTypeConfig has both configMap "models" and path "/etc/types"',
        ),
        (("gpuTypeConfig.path=types.yaml",), "gpuTypeConfig"),
        (("gpuTypeConfig.configMap=No_Name",), "gpuTypeConfig"),
        (("gpuTypeConfig.configMap=models", "gpuTypeConfig.key=a/b"), "gpuTypeConfig"),
        (("gpuTypeConfig.configmap=models",), "gpuTypeConfig"),
    ],
)
def test_what_is_no_source_of_short_names_is_refused(
    program: Path, settings: tuple[str, ...], named: str
) -> None:
    done = render(program, *settings)
    assert done.returncode != 0 and named in done.stderr


def test_the_plugin_keeps_off_nodes_where_it_is_a_unit(program: Path) -> None:
    """Role device_plugin_unit sets store by this label; module device_plugin_cover names it."""
    rendered = objects(program)
    affinity = plugin(rendered)["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    wanted = {"key": "flexai.io/device-plugin", "operator": "NotIn", "values": ["unit"]}
    assert term == {"matchExpressions": [wanted]}
    assert "affinity" not in client(rendered), "the runtime is wanted there all the same"
