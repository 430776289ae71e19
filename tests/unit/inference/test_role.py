# SPDX-License-Identifier: GPL-3.0-or-later
"""Role inference_service without a cluster: what it writes, refuses, and never shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter import render_inference as plugin
from ansible_collections.flexai.xpu.plugins.module_utils._inference import service as services

from .samples import LEADER, Document, put, service

PLAYBOOK = Path(sysconfig.get_path("scripts")) / "ansible-playbook"
SECRET = "hunter2-the-secret"


def play(tmp_path: Path, entry: str, services: list[Document], *more: str) -> tuple[int, str]:
    """(rc, output) of one entry point, as talkative as Ansible gets."""
    role = {"name": "flexai.xpu.inference_service", "tasks_from": entry}
    tasks = [{"ansible.builtin.include_role": role}]
    variables = {
        "inference_service_services": services,
        "inference_service_directory": str(tmp_path / "out"),
    }
    # As a site has them; extra variables would stand in the output of -vvv.
    (tmp_path / "vars.yml").write_text(json.dumps(variables))
    plays = [
        {
            "hosts": "localhost", "connection": "local", "gather_facts": False,
            "vars_files": [str(tmp_path / "vars.yml")], "tasks": tasks,
        }
    ]  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    done = subprocess.run(
        [str(PLAYBOOK), "-i", "localhost,", str(tmp_path / "play.yml"), *more],
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_files_hold_what_the_filter_renders_and_a_second_run_changes_nothing(
    tmp_path: Path,
) -> None:
    other = put(service(workers=0), "metadata.name", "other")
    services = [service(), other]
    rc, output = play(tmp_path, "render", services)
    assert rc == 0, output
    for document in services:
        name = document["metadata"]["name"]
        written = yaml.safe_load((tmp_path / "out" / f"serving-{name}.yml").read_text())
        assert written["kind"] == "List"
        assert written["items"] == plugin.render_inference(document)["objects"]
    rc, output = play(tmp_path, "render", services)
    assert rc == 0
    assert "changed=0" in output


def test_all_that_is_wrong_with_all_services_is_told_and_no_secret_is(tmp_path: Path) -> None:
    first = put(service(), f"{LEADER}.env", [{"name": "HF_TOKEN", "value": SECRET}])
    second = put(put(service(), "metadata.name", "other"), "spec.replcas", SECRET)
    rc, output = play(tmp_path, "validate", [first, second], "-vvv")
    assert rc != 0
    assert f"{LEADER}.env[0].value: (not shown)" in output
    assert "spec.replcas: (not shown)" in output
    assert "do: write replicas" in output
    assert SECRET not in output


def test_the_filter_refuses_with_every_line() -> None:
    document = put(service(), "metadata.name", "Bad")
    put(document, "spec.flexai.shm_size", "1Ti")
    with pytest.raises(AnsibleFilterError) as refused:
        plugin.render_inference(document)
    lines = str(refused.value).splitlines()
    assert lines[0] == "render_inference: 2 to correct:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "metadata.name",
        "spec.flexai.shm_size",
    ]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [({"output": "yaml"}, "output"), ({"facts": {"kidns": []}}, "facts.kidns")],
)
def test_the_filters_own_arguments_are_checked(arguments: dict[str, Any], path: str) -> None:
    with pytest.raises(AnsibleFilterError, match=path):
        plugin.render_inference(service(), **arguments)


def test_the_collections_own_scripts_are_delivered() -> None:
    made = plugin.render_inference(service())
    data = made["objects"][0]["data"]
    assert {"run.sh", "probe.sh", "prestop.sh", "leader.sh", "worker.sh"} <= set(data)
    for name in plugin.collection_scripts():
        assert data[name] == (plugin.FILES / name).read_text()


def test_role_and_filter_deliver_the_same_files(tmp_path: Path) -> None:
    """Else the module's ConfigMap would have another name than the reviewed one."""
    tasks = (plugin.FILES.parent / "vars" / "main.yml").read_text()
    variables = yaml.safe_load(tasks)
    variables["role_path"] = str(plugin.FILES.parent)
    variables["out"] = str(tmp_path / "scripts.json")
    content = "{{ __inference_service_scripts | to_json }}"
    task = {"ansible.builtin.copy": {"content": content, "dest": "{{ out }}", "mode": "0644"}}
    plays = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    (tmp_path / "vars.json").write_text(json.dumps(variables))
    subprocess.run(
        [
            *(str(PLAYBOOK), "-i", "localhost,", str(tmp_path / "play.yml")),
            *("-e", f"@{tmp_path / 'vars.json'}"),
        ],
        check=True,
        capture_output=True,
    )
    assert json.loads((tmp_path / "scripts.json").read_text()) == plugin.collection_scripts()
    assert "run.sh" in plugin.collection_scripts()
    assert "README.md" not in plugin.collection_scripts()


SETTINGS = {
    "FLEXAI_START_TIMEOUT": ("Probes", "startup_seconds"),
    "FLEXAI_DEEP_PROBE_SECONDS": ("Probes", "deep_seconds"),
    "FLEXAI_GROUP_FAILURE_TIMEOUT": ("Restart", "group_failure_timeout"),
    "FLEXAI_HEARTBEAT_SECONDS": ("Restart", "heartbeat_seconds"),
    "FLEXAI_MAX_GROUP_RESTARTS": ("Restart", "max_group_restarts"),
    "FLEXAI_RESTART_WINDOW": ("Restart", "window_seconds"),
    "FLEXAI_DRAIN_SECONDS": ("Drain", "seconds"),
    "FLEXAI_PRESTOP_SECONDS": ("Drain", "prestop_seconds"),
    "FLEXAI_API_PORT": ("Api", "port"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_run_sh_takes_every_value_that_a_document_may_have(name: str) -> None:
    """Else a service that was found right would end with exit 2 in its pods."""
    block, key = SETTINGS[name]
    least, _rest, most = services.TYPES[block][key].partition("..")
    text = "".join(plugin.collection_scripts().values())
    match = re.search(rf"^ *number {name} \d+ (\d+) (\d+)$", text, re.MULTILINE)
    assert match, name
    assert int(match[1]) <= int(least)
    assert int(most) <= int(match[2])


def test_run_sh_knows_every_backend_that_is_rendered() -> None:
    run = plugin.collection_scripts()["run.sh"]
    for backend in (*services.TYPES["Rendezvous"]["backend"].split("|"), "none"):
        assert re.search(rf"^ *{backend}\) default=", run, re.MULTILINE), backend
