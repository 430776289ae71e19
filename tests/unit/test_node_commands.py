# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/node-commands.md is complete: each step of the documents on a host stands there, beside a
role, module, filter or playbook that there is."""

from __future__ import annotations

import re

import pytest

from .test_playbooks import REPOSITORY

PAGE = (REPOSITORY / "docs/node-commands.md").read_text(encoding="utf-8")
# As the documents write them: 000 from its installation (section 3, what was built is there) to its
# first service, 002 whole. A step that is one command in several lines stands by its first words.
STEPS = {
    "000": (
        "NVIDIA-Linux-x86_64-535.183.06.run",
        "chmod +x",
        "./NVIDIA-Linux-x86_64-*.run --silent --accept-license --no-questions --disable-nouveau",
        "cuda_12.2.0_535.54.03_linux.run",
        "sudo sh cuda_12.2.0_",
        "tar -zxvf nvidia-container-toolkit_*.tar.gz",
        "cd release-*-stable/packages/centos7/x86_64/",
        "rpm -ivh libnvidia-container1-*.rpm",
        "nvidia-smi",
        "nvidia-ctk",
        "nvidia-ctk runtime configure --runtime=docker",
        "systemctl daemon-reload; systemctl restart docker",
        "nvidia-ctk runtime configure --runtime=containerd",
        "systemctl daemon-reload; systemctl restart containerd",
        "docker save",
        "tar -zxvf helm-v3.0.0-linux-amd64.tar.gz",
        "mv linux-amd64/helm /usr/local/bin/helm",
        "helm package gpupool",
        "kubectl patch runtimeclass nvidia",
        "kubectl label node",
        "helm install gpupool gpupool-0.1.0.tgz --set runtimeType",
        "kubectl get pod -A",
        "cuda-client-update",
    ),
    "002": (
        "dnf install moby",
        "nvidia-smi",
        "nvcc -V",
        "systemctl restart docker",
        "docker pull hub.oepkgs.net/neocopilot/syshax/syshax-vllm-gpu:0.2.0",
        "docker run --name vllm_gpu",
        "docker pull hub.oepkgs.net/neocopilot/syshax/syshax-vllm-cpu:0.2.0",
        "docker run --name vllm_cpu",
        "vllm serve",
        "lscpu",
        "OMP_NUM_THREADS",
        "CUSTOM_CPU_AFFINITY",
        "dnf install sysHAX",
        "syshax init",
        "syshax config",
        "syshax run",
        "curl",
    ),
}
# In place of which there may stand: a role, a module, a filter, a playbook.
KNOWN = {
    *(path.name for path in (REPOSITORY / "roles").iterdir()),
    *(path.stem for path in (REPOSITORY / "plugins").glob("*/*.py")),
    *(path.stem for path in (REPOSITORY / "playbooks").glob("*.yml")),
}


def rows(document: str) -> list[tuple[str, str]]:
    """(commands, what replaces them) of one document's table."""
    section = PAGE.partition(f"## Document {document}\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [(found[0], found[1]) for found in cells if found[0] != "| command"]


@pytest.mark.parametrize(
    ("document", "step"), [(name, step) for name, steps in STEPS.items() for step in steps]
)
def test_each_step_on_a_host_stands_beside_what_replaces_it(document: str, step: str) -> None:
    assert [replaced for commands, replaced in rows(document) if step in commands], step


@pytest.mark.parametrize("document", STEPS)
def test_what_replaces_a_step_is_there(document: str) -> None:
    found = rows(document)
    assert found
    for commands, replaced in found:
        first = re.search(r"`(?:flexai\.xpu\.)?(\w+)`", replaced)
        assert first and first[1] in KNOWN, f"{commands}: {replaced}"
