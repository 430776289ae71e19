# SPDX-License-Identifier: GPL-3.0-or-later
"""Role vllm_service where no cluster is: what it refuses before it would ask one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
DOCUMENTS = Path(__file__).parent / "fixtures" / "documents"


def role(tmp_path: Path, entry: str = "main", **variables: Any) -> dict[str, Any]:
    """The role on this machine as control plane and node; the last task's result."""
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    groups = {
        name: {"hosts": {"here": None}} for name in ("flexai_control_plane", "flexai_kubernetes")
    }
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"all": {"vars": host, "children": groups}}))
    settings = {f"vllm_service_{name}": value for name, value in variables.items()}
    done = subprocess.run(
        [
            str(PLAYBOOK), str(REPOSITORY / "tests/e2e/vllm_service.yml"), "-i", str(inventory),
            "--extra-vars", json.dumps({"entry": entry, **settings}),
        ],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "build/collections"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    tasks = json.loads(done.stdout)["plays"][0]["tasks"]
    return {"rc": done.returncode, "tasks": tasks, **tasks[-1]["hosts"]["here"]}


def model(tmp_path: Path) -> Path:
    """A model of a known name, without its config.json."""
    directory = tmp_path / "DeepSeek-R1-Distill-Llama-8B"
    directory.mkdir()
    return directory


def test_without_a_model_nothing_is_done(tmp_path: Path) -> None:
    done = role(tmp_path)
    assert done["rc"] == 0
    # The first two include the role and look at its variables.
    skipped = [task["hosts"]["here"].get("skipped") for task in done["tasks"][2:]]
    assert skipped == [True, True]


def test_document_000s_own_service_is_refused_before_any_cluster_is_asked(tmp_path: Path) -> None:
    path = model(tmp_path)
    done = role(
        tmp_path, model=str(path), memory_gib=3, scheduler="volcano", image="x:1", command=["true"]
    )
    assert done["rc"] != 0
    assert done["msg"].startswith('vllm_service_memory_gib: "3.00 GiB"; allowed: at least what')
    assert "weights 14.96 GiB" in done["msg"]


def test_a_node_without_the_model_is_named(tmp_path: Path) -> None:
    path = model(tmp_path)
    done = role(tmp_path, model=str(path), memory_gib=17, scheduler="volcano", command=["true"])
    assert done["rc"] != 0
    assert done["msg"].startswith(f"{path}/config.json is not on here. Remedy: put the model there")


def test_a_model_is_copied_somewhere_or_not_at_all(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "device": "whole",
        "model_source": str(model(tmp_path)),
        "command": ["true"],
    }
    done = role(tmp_path, model="/models/mine", **more)
    assert done["rc"] != 0
    assert "is to be copied to no host: vllm_service_nodes is empty" in done["msg"]


def test_what_lies_on_the_node_goes_before_the_directorys_name(tmp_path: Path) -> None:
    path = model(tmp_path)
    (path / "config.json").write_text('{"model_type": "llama", "hidden_size": 1}')
    done = role(tmp_path, model=str(path), memory_gib=3, scheduler="volcano", command=["true"])
    told = [task["hosts"]["here"].get("msg", "") for task in done["tasks"]]
    assert any("the model's memory is not checked: config.json: interm" in str(msg) for msg in told)


def test_the_documents_manifests_are_refused_with_every_mistake(tmp_path: Path) -> None:
    files = [str(DOCUMENTS / f"000-{name}.txt") for name in ("deployment", "service")]
    done = role(tmp_path, "check", manifests=files, calls=["http://<service-ip>:8000/openapi.json"])
    assert done["rc"] != 0
    lines = done["msg"].splitlines()
    assert len(lines) == 15
    assert lines[-1].startswith('Service deepseek-r1: spec.ports: "port 80"; allowed: 8000')


def test_a_manifest_without_mistakes_passes(tmp_path: Path) -> None:
    demo = REPOSITORY / "tests/e2e/manifests/slice-demo.yaml"
    assert role(tmp_path, "check", manifests=[str(demo)])["rc"] == 0
