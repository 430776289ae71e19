# SPDX-License-Identifier: Apache-2.0
"""The exporter in chart gpupool, its dashboards and alert rules."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from xpubuild.cache import Cache
from xpubuild.recipes import charts, helm
from xpubuild.toolchain import REPOSITORY

CHART = charts.CHARTS / charts.NAME
EXPORTER = "xpuExporter.enabled=true"
EVERYTHING = (
    EXPORTER,
    "ServiceMonitor.enable=true",
    "PrometheusRule.enable=true",
    "GrafanaDashboard.enable=true",
)
KUBERNETES = ("1.28", "1.33")
OUR_METRICS = re.compile(r"\b(?:xpu|gpu_exporter)_\w+")


@pytest.fixture(scope="module")
def program() -> Path:
    return helm.build(Cache()) / "helm"


def render(program: Path, *settings: str, api: str = "v1") -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    argv = [str(program), "template", "gpupool", str(CHART), "--api-versions", api, *words]
    return subprocess.run(argv, text=True, capture_output=True, check=False)


def objects(program: Path, *settings: str) -> dict[str, Any]:
    """What the chart makes for the exporter, by ``kind/name``."""
    done = render(program, *settings)
    assert done.returncode == 0, done.stderr
    made = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {
        f"{document['kind']}/{document['metadata']['name']}": document
        for document in made
        if document["metadata"]["name"].startswith("xpu-exporter")
    }


def pod(rendered: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["DaemonSet/xpu-exporter"]["spec"]["template"]["spec"]
    return spec


def exported() -> dict[str, set[str]]:
    """Metric → its labels, from the text that package exporter's own test fixes."""
    text = REPOSITORY / "native/cluster/exporter/testdata/metrics.txt"
    found = {}
    for line in text.read_text(encoding="utf-8").splitlines():
        parsed = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line)
        if parsed:
            found[parsed[1]] = set(re.findall(r'(\w+)="', parsed[2] or ""))
    return found


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((CHART / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in CHART.glob("dashboards/*.json")}


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every rule and panel."""
    for rule in alerts():
        yield f"alert {rule['alert']}", rule["expr"]
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"]


def plain(query: str) -> str:
    """A dashboard's query with its variables filled in, as Grafana does."""
    filled = query.replace("$__rate_interval", "1m")
    return re.sub(r"\$(node|namespace|pod)\b", ".*", filled)


def selectors(expression: Any) -> Iterator[Any]:
    """Every selector of a metric in a parsed query."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        inner = getattr(expression, name, None)
        if inner is not None:
            yield from selectors(inner)
    for inner in getattr(expression, "args", None) or ():
        yield from selectors(inner)


def test_nothing_of_it_is_there_unless_asked_for(program: Path) -> None:
    assert objects(program) == {}
    assert sorted(objects(program, EXPORTER)) == [
        "DaemonSet/xpu-exporter",
        "Service/xpu-exporter-svc",
        "ServiceAccount/xpu-exporter",
    ]
    assert sorted(set(objects(program, *EVERYTHING)) - set(objects(program, EXPORTER))) == [
        "ConfigMap/xpu-exporter-dashboards",
        "PrometheusRule/xpu-exporter",
        "ServiceMonitor/xpu-exporter",
    ]


@pytest.mark.parametrize("switch", EVERYTHING[1:])
def test_monitoring_of_an_exporter_that_is_not_there_is_refused(program: Path, switch: str) -> None:
    done = render(program, switch)
    assert done.returncode != 0
    assert f"{switch.partition('.')[0]}.enable is true" in done.stderr
    assert "xpuExporter.enabled=true" in done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("system", ["debian", "openeuler"])
def test_every_object_is_strictly_what_kubernetes_knows(
    program: Path, version: str, system: str
) -> None:
    settings = ("xpuExporter.https.enabled=true", "xpuExporter.auth.secret=t", f"osType={system}")
    for name, document in objects(program, *EVERYTHING, *settings).items():
        if "monitoring.coreos.com" not in document["apiVersion"]:
            kubernetes_validate.validate(document, version, strict=True), name


def test_it_has_no_rights_and_no_power(program: Path) -> None:
    rendered = objects(program, EXPORTER)
    spec = pod(rendered)
    assert spec["automountServiceAccountToken"] is False
    assert rendered["ServiceAccount/xpu-exporter"]["automountServiceAccountToken"] is False
    assert {"hostPID", "hostNetwork", "hostIPC"}.isdisjoint(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert [v["hostPath"]["path"] for v in spec["volumes"]] == ["/var/lib/xpu/exporter"]
    assert spec["containers"][0]["volumeMounts"][0]["readOnly"] is True


def test_its_group_is_the_one_that_the_plugin_lets_in(program: Path) -> None:
    source = REPOSITORY / "native/cluster/cmd/gpu-device-plugin/config.go"
    group = re.search(r'"exporter-group", (\d+),', source.read_text(encoding="utf-8"))
    assert group
    assert pod(objects(program, EXPORTER))["securityContext"]["runAsGroup"] == int(group[1])


def test_selinux_lets_it_speak_on_the_hosts_socket(program: Path) -> None:
    def labelled(system: str) -> bool:
        context = pod(objects(program, EXPORTER, f"osType={system}"))["securityContext"]
        return "seLinuxOptions" in context

    assert [labelled(system) for system in ("openeuler", "rhel", "debian")] == [True, True, False]


@pytest.mark.parametrize("network", [False, True])
def test_openshift_admits_what_the_pod_asks_for_and_nothing_else(
    program: Path, network: bool
) -> None:
    settings = (EXPORTER, f"xpuExporter.hostNetwork={str(network).lower()}")
    done = render(program, *settings, api="security.openshift.io/v1")
    made = [document for document in yaml.safe_load_all(done.stdout) if document]
    name = "gpupool-xpu-exporter"
    constraints = next(document for document in made if document["metadata"]["name"] == name)
    spec = pod(objects(program, *settings))
    assert constraints["users"] == [f"system:serviceaccount:xpu:{spec['serviceAccountName']}"]
    assert constraints["allowHostNetwork"] is constraints["allowHostPorts"] is network
    assert constraints["runAsUser"]["uid"] == spec["securityContext"]["runAsUser"]
    asked = [constraints[key] for key in constraints if key.startswith("allow")]
    assert asked.count(True) == (3 if network else 1)  # host directories


def test_port_network_and_flags(program: Path) -> None:
    settings = ("xpuExporter.port=18082", "xpuExporter.hostNetwork=true")
    rendered = objects(program, EXPORTER, *settings, "xpuExporter.args={--LimitIPReq=60/1}")
    container = pod(rendered)["containers"][0]
    assert container["args"] == ["--port=18082", "--LimitIPReq=60/1"]
    assert container["ports"][0]["containerPort"] == 18082
    assert pod(rendered)["hostNetwork"] is True
    assert rendered["Service/xpu-exporter-svc"]["spec"]["ports"][0]["port"] == 18082
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {
            "path": "/healthz",
            "port": "metrics",
            "scheme": "HTTP",
        }


def test_https_and_the_token_reach_exporter_and_prometheus(program: Path) -> None:
    settings = ("xpuExporter.https.enabled=true", "xpuExporter.auth.secret=scrape-token")
    rendered = objects(program, *EVERYTHING, *settings)
    spec = pod(rendered)
    container = spec["containers"][0]
    assert {"name": "HTTPS_ENABLE", "value": "on"} in container["env"]
    assert "--auth-token-file=/etc/xpu-exporter/auth/token" in container["args"]
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    secrets = {volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    assert secrets == {"exporter-tls", "scrape-token"}
    endpoint = rendered["ServiceMonitor/xpu-exporter"]["spec"]["endpoints"][0]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == "exporter-tls"
    assert endpoint["authorization"]["credentials"] == {"name": "scrape-token", "key": "token"}


def test_prometheus_finds_the_pods(program: Path) -> None:
    rendered = objects(program, *EVERYTHING, "ServiceMonitor.labels.release=prometheus")
    labels = rendered["DaemonSet/xpu-exporter"]["spec"]["template"]["metadata"]["labels"]
    service = rendered["Service/xpu-exporter-svc"]
    monitor = rendered["ServiceMonitor/xpu-exporter"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    endpoint = monitor["spec"]["endpoints"][0]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["honorLabels"] is True  # namespace and pod are the slice's
    assert endpoint["interval"] == "15s"


def test_the_rules_are_rendered_as_they_are_written(program: Path) -> None:
    rule = objects(program, *EVERYTHING)["PrometheusRule/xpu-exporter"]
    assert rule["spec"] == yaml.safe_load((CHART / "alerts.yaml").read_text(encoding="utf-8"))


def test_the_dashboards_are_rendered_as_they_are_written(program: Path) -> None:
    config_map = objects(program, *EVERYTHING)["ConfigMap/xpu-exporter-dashboards"]
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    rendered = {name: json.loads(text) for name, text in config_map["data"].items()}
    assert rendered == {f"flexai-xpu-{name}": board for name, board in dashboards().items()}
    assert len(rendered) == 2


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_is_promql_over_what_is_exported(where: str, query: str) -> None:
    """A rule or panel about a metric, or a label, that nobody exports would be silent for ever."""
    found = list(selectors(promql_parser.parse(plain(query))))
    assert found, f"{where} asks for nothing"
    metrics = exported()
    for selector in found:
        assert selector.name in metrics, f"{where}: {selector.name} is not exported"
        for matcher in selector.matchers.matchers:
            assert matcher.name in metrics[selector.name], f"{where}: no label {matcher.name}"
    assert {selector.name for selector in found} == set(OUR_METRICS.findall(query))


def test_texts_of_alerts_and_legends_name_labels_that_are_there() -> None:
    metrics = exported()
    for rule in alerts():
        labels = set.union(*(metrics[name] for name in OUR_METRICS.findall(rule["expr"])))
        text = json.dumps(rule["annotations"])
        used = set(re.findall(r"\$labels\.(\w+)", text))
        assert used <= labels | {"instance"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                labels = set.union(*(metrics[m] for m in OUR_METRICS.findall(target["expr"])))
                used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert used <= labels, f"{name}: {panel['title']}"


def test_dashboards_choose_by_labels_that_are_there() -> None:
    metrics = exported()
    for name, board in dashboards().items():
        for variable in board["templating"]["list"]:
            if variable["type"] != "query":
                continue
            asked = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["definition"])
            assert asked, f"{name}: {variable['name']}"
            assert asked[3] in metrics[asked[1]], f"{name}: {variable['name']}"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("xpuExporter.enable=true", "enable"),
        ("xpuExporter.port=80", "port"),
        ("xpuExporter.image.tag=x", "tag"),
        ("xpuExporter.args={LimitIPReq=1}", "args"),
        ("xpuExporter.https.secret=", "secret"),
        ("ServiceMonitor.enabled=true", "enabled"),
        ("ServiceMonitor.interval=often", "interval"),
        ("GrafanaDashboard.labels=x", "labels"),
    ],
)
def test_a_wrong_value_is_refused_by_name(program: Path, setting: str, named: str) -> None:
    done = render(program, setting)
    assert done.returncode != 0
    assert named in done.stderr
