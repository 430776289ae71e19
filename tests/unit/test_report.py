# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: what is where, for programs and for people, whatever state the site is in."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ansible_collections.flexai.xpu.plugins.module_utils import _report as reports
from ansible_collections.flexai.xpu.plugins.module_utils import _verdict as verdicts

from . import hostroot
from .test_playbooks import Site, files, hosts, run, set_host, site

__all__ = ["site"]  # a fixture


def part(name: str, found: str, state: str = "ok", reason: str = "") -> verdicts.Component:
    return verdicts.Component(name, "580.95.05", found, state, reason)


def a_report(reason: str = "") -> reports.Report:
    """Two hosts: one as it should be, one in the middle of a change."""
    nodes = [
        verdicts.build("gpu1", [part("nvidia_driver", "580.95.05")]),
        verdicts.build("gpu2", [part("nvidia_driver", "575.64.03", "pending-reboot", reason)]),
    ]
    step = {"component": "nvidia_driver", "action": "change", "reason": "575.64.03 → 580.95.05"}
    probes: dict[str, dict[str, Any]] = {
        "gpu1": {"facts": {"host": {"system": "debian", "euid": 0}}, "plan": []},
        "gpu2": {"plan": [step, {"component": "images", "action": "ok", "reason": ""}]},
    }
    return reports.build(verdicts.merge("north", "2026-11-25T00:00:00+00:00", nodes), probes)


def test_what_is_where_names_the_hosts_of_each_version() -> None:
    assert a_report()["where"] == {
        "nvidia_driver": {"580.95.05": ["gpu1"], "575.64.03": ["gpu2"]},
    }


def test_a_host_bears_what_it_is_and_what_would_be_done_to_it() -> None:
    first, second = a_report()["nodes"]
    assert (first["facts"], first["plan"]) == ({"system": "debian"}, [])
    assert [step["component"] for step in second["plan"]] == ["nvidia_driver"]


def test_markdown_is_whole_whatever_a_tool_said() -> None:
    text = reports.markdown(a_report("rc 1 | <b>\nand more"))
    assert text.startswith("# Site north is not ready: 1 of 2, 2026-11-25T00:00:00+00:00\n")
    assert text.split("## What is where", maxsplit=1)[0].splitlines()[2:] == [
        "## Not as it should be",
        "",
        "| node | component | state | reason |",
        "| --- | --- | --- | --- |",
        "| gpu2 | nvidia_driver | pending-reboot | rc 1 \\| &lt;b> and more |",
        "",
    ]
    assert "| nvidia_driver | 575.64.03 | 1 | gpu2 |" in text


class Page(HTMLParser):
    """What a browser would see, and what it would have to fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [f"{tag} {name}" for name, _value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else_and_runs_no_word_of_a_tool() -> None:
    seen = Page(reports.page(a_report("<script>alert(1)</script>")))
    assert seen.fetched == []
    assert "script" not in seen.tags
    assert "<script>alert(1)</script>" in seen.words


def test_a_ready_site_has_no_table_of_what_is_wrong() -> None:
    node = verdicts.build("gpu1", [part("nvidia_driver", "580.95.05")])
    report = reports.build(verdicts.merge("north", "now", [node]), {})
    assert [heading for heading, _table in reports.tables(report)] == ["What is where", "All"]


def test_the_playbook_reports_hosts_that_no_other_could_go_on_with(
    tmp_path: Path, site: Site
) -> None:
    """One unreachable, one in the middle of a broken change, one blocked."""
    note = {"step": "reboot", "reason": "nobody said that it may"}
    hostroot.put(tmp_path / "gpu1", "/var/lib/flexai-xpu/transaction.json", json.dumps(note))
    set_host("gpu2", ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9)(site)
    hosts(site)["gpu3"] = {
        "flexai_root": str(hostroot.bare(tmp_path / "gpu3")),
        "container_runtime_engine": "docker",
    }
    before = files(tmp_path / "gpu1", tmp_path / "gpu3")
    where = tmp_path / "report"
    done = run(tmp_path, site, "report", "-e", f"flexai_report={where}")
    assert done.returncode == 0, done.stdout
    report: dict[str, Any] = json.loads((where / "report.json").read_text())
    told = {
        node["name"]: {p["name"]: (p["state"], p["reason"]) for p in node["components"]}
        for node in report["nodes"]
    }
    wanted = ("pending-reboot", "cordoned since step reboot: nobody said that it may")
    assert told["gpu1"]["node_transaction"] == wanted
    assert told["gpu2"]["host"][0] == "failed"
    assert told["gpu2"]["host"][1].startswith("unreachable: ")
    assert told["gpu3"]["container_runtime"][0] == "failed"
    assert "node_transaction" not in told["gpu3"]
    (third,) = (node for node in report["nodes"] if node["name"] == "gpu3")
    blocked = {step["component"] for step in third["plan"] if step["action"] == "blocked"}
    assert "container_runtime" in blocked
    assert (where / "report.md").exists() and (where / "report.html").exists()
    assert files(tmp_path / "gpu1", tmp_path / "gpu3") == before
