# SPDX-License-Identifier: GPL-3.0-or-later
"""What role monitoring has the chart do, judged by the chart's own schema."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/monitoring"
SCHEMA = json.loads((ROOT / "native/charts/gpupool/values.schema.json").read_text())
ANSIBLE = Path(sysconfig.get_path("scripts")) / "ansible"


def decided(**settings: Any) -> dict[str, Any]:
    """The part of the chart's values that the role sets."""
    sources = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml")
    done = subprocess.run(
        [
            *(ANSIBLE, "localhost", "-i", "localhost,", "-c", "local"),
            *("-m", "ansible.builtin.debug", "-a", "var=__monitoring_values"),
            *(word for path in sources for word in ("-e", f"@{path}")),
            *("-e", json.dumps(settings)),
        ],
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    values: dict[str, Any] = json.loads(done.stdout.partition("=> ")[2])["__monitoring_values"]
    return values


def check(values: dict[str, Any]) -> None:
    """Types and names are the schema's; what is not named keeps the chart's default."""
    for key, value in values.items():
        part = {**SCHEMA["properties"][key], "definitions": SCHEMA["definitions"]}
        part.pop("required")
        for nested in part["properties"].values():
            nested.pop("required", None)
        jsonschema.validate(value, part)


def test_by_default_the_exporter_runs_and_nothing_else() -> None:
    values = decided()
    check(values)
    assert values["xpuExporter"] == {
        "enabled": True,
        "port": 8082,
        "hostNetwork": False,
        "auth": {"secret": ""},
        "https": {"enabled": False},
    }
    switches = ("ServiceMonitor", "PrometheusRule", "GrafanaDashboard")
    assert [values[name]["enable"] for name in switches] == [False] * 3


def test_everything_that_may_be_asked_for_reaches_the_chart() -> None:
    labels = {"release": "prometheus"}
    values = decided(
        monitoring_port="18082",  # as a survey gives it
        monitoring_host_network=True,
        monitoring_service_monitor=True,
        monitoring_alerts=True,
        monitoring_dashboards=True,
        monitoring_labels=labels,
        monitoring_https_secret="exporter-tls",
        monitoring_token_secret="scrape",
    )
    check(values)
    assert values["xpuExporter"] == {
        "enabled": True,
        "port": 18082,
        "hostNetwork": True,
        "auth": {"secret": "scrape"},
        "https": {"enabled": True, "secret": "exporter-tls"},
    }
    assert (
        values["ServiceMonitor"] == values["PrometheusRule"] == {"enable": True, "labels": labels}
    )
    assert values["GrafanaDashboard"] == {"enable": True}


def test_without_the_exporter_nothing_asks_for_its_metrics() -> None:
    values = decided(
        monitoring_exporter=False,
        monitoring_service_monitor=True,
        monitoring_alerts=True,
        monitoring_dashboards=True,
    )
    check(values)
    assert [values[name].get("enable", values[name].get("enabled")) for name in values] == [
        False
    ] * 4


def test_a_value_that_the_chart_refuses_is_seen_here() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(decided(monitoring_port=80))
