# SPDX-License-Identifier: GPL-3.0-or-later
"""Document 004's own manifest and commands: each mistake is found, named, and mendable."""

from __future__ import annotations

from . import samples
from .samples import LEADER, WORKER, document_004, problems, put, rendered

# Document 004's vLLM and SGLang commands, as a user would write them into its own manifest.
VLLM_LEADER = (
    "bash run.sh leader --port=6379 --ray_cluster_size=2\n"
    "python3 -m vllm.entrypoints.openai.api_server --port 8080 --model "
    "/model/meta-llama/Llama-3.2-1B-Instruct/ --tensor-parallel-size 2 --pipeline_parallel_size 2"
)
VLLM_WORKER = "bash run.sh worker --ray_port=6379 --ray_address=10.244.167.194"
SGLANG_WORKER = (
    "export LWS_LEADER_ADDRESS=10.244.167.218\n"
    "python3 -m sglang.launch_server --tp 2 --dist-init-addr $LWS_LEADER_ADDRESS:20000"
)


def mended() -> samples.Document:
    """The manifest with what is refused in it put right, and nothing else."""
    document = document_004()
    put(document, f"{LEADER}.command", ["python3", "-m", "http.server", "8080"])
    document["spec"]["servers"]["leader"]["template"]["spec"]["containers"][0].pop("args")
    secret = {"secretKeyRef": {"name": "registry", "key": "password"}}
    put(document, f"{WORKER}.env[1]", {"name": "USER_REGISTRY_PASSWORD", "valueFrom": secret})
    return document


def test_each_mistake_of_the_manifest_is_named() -> None:
    assert problems(document_004()) == [
        f"{LEADER}.command: is missing; allowed: a command: run.sh takes the place of the image's "
        "entry point and starts it; do: write the command, or describe the engine in "
        "spec.flexai.engine",
        f"{LEADER}.args[0]: (not shown); allowed: straight quotes only; a shell takes \u201c and "
        "\u201d as letters; do: retype the quotes, or the whole word",
        f"{WORKER}.env[1].value: (not shown); allowed: no secret in plain text "
        "(USER_REGISTRY_PASSWORD); do: put it into a Secret, take it with valueFrom.secretKeyRef; "
        "change it too",
    ]


def test_templates_that_one_statefulset_cannot_have_are_named_beside_the_mistakes() -> None:
    found = samples.outcome(document_004())
    assert [warning.partition(": ")[0] for warning in found.warnings] == [
        f"{WORKER}.image",
        f"{WORKER}.imagePullPolicy",
    ]
    assert "layout split" in found.warnings[0]


def test_with_layout_single_they_are_mistakes() -> None:
    texts = problems(put(mended(), "spec.flexai.layout", "single"))
    assert [text.partition(": ")[0] for text in texts] == [
        f"{WORKER}.image",
        f"{WORKER}.imagePullPolicy",
        f"{WORKER}.env[USER_REGISTRY_PASSWORD]",
    ]


def test_the_mended_manifest_renders_as_two_statefulsets() -> None:
    result = rendered(mended())
    assert result.layout == "split"
    kinds = [(thing["kind"], thing["metadata"]["name"]) for thing in result.objects]
    name = "simple-inference-service"
    assert kinds[1:] == [
        ("Service", f"{name}-hl"),
        ("Service", name),
        ("NetworkPolicy", name),
        ("PodGroup", f"{name}-g0"),
        ("StatefulSet", f"{name}-g0"),
        ("StatefulSet", f"{name}-g0-w"),
        ("PodDisruptionBudget", name),
    ]


def test_how_the_members_of_a_command_meet_is_guessed_and_said_so() -> None:
    for words, backend in (("ray start", "ray"), ("sglang.launch_server", "sglang"), ("x", "mp")):
        document = put(mended(), f"{WORKER}.command", ["bash", "-c", words])
        result = rendered(document)
        found = samples.environment(samples.of_kind(result, "StatefulSet")[0])
        assert found["FLEXAI_BACKEND"] == backend
        assert "FLEXAI_RENDEZVOUS_PORT" not in found
        assert any(f"taken to be {backend}" in warning for warning in result.warnings)
        put(document, "spec.flexai.rendezvous", {"backend": "dp", "port": 7000})
        found = samples.environment(samples.of_kind(rendered(document), "StatefulSet")[0])
        assert (found["FLEXAI_BACKEND"], found["FLEXAI_RENDEZVOUS_PORT"]) == ("dp", "7000")


def test_a_workers_typed_in_address_is_found() -> None:
    document = mended()
    put(document, f"{WORKER}.command", ["bash", "-c", VLLM_WORKER])
    (text,) = problems(document)
    assert text.startswith(f'{WORKER}.command: "10.244.167.194"; allowed: no address of a pod')
    put(document, f"{WORKER}.command", ["bash", "-c", SGLANG_WORKER])
    (text,) = problems(document)
    assert '"10.244.167.218"' in text


def test_tensor_parallelism_on_shares_of_a_card_is_found() -> None:
    document = mended()
    put(document, f"{LEADER}.command", ["bash", "-c", VLLM_LEADER])
    put(document, f"{LEADER}.resources.limits", {"nvidia.com/gpu.shared": "1"})
    document["spec"]["servers"]["leader"]["template"]["spec"]["containers"][0]["resources"].pop(
        "requests"
    )
    (text,) = problems(document)
    assert text.startswith(f"{LEADER}.resources.limits.nvidia.com/gpu.shared: 1; allowed: whole")


def test_the_commands_gpus_are_counted_from_its_own_engine_block() -> None:
    """tp 2 × pp 2 over two pods takes two GPUs a pod, which the document's command doesn't say."""
    (text,) = problems(samples.service(gpus=1, flexai__parallelism={"tp": 2, "pp": 2}))
    assert text.startswith("spec.flexai.parallelism: ")
    assert "a product of 2 (2 pods × 1 GPU = 2)" in text


def test_secrets_never_reach_any_output() -> None:
    secret = "hunter2-the-secret"
    places = {
        f"{LEADER}.env": [{"name": "HF_TOKEN", "value": secret}],
        f"{WORKER}.env": [{"name": "API_KEY", "valeu": secret}],
        f"{LEADER}.args": ["--api-key", secret],
        "spec.flexai.engine.args": [f"--api-key={secret}"],
        f"{LEADER}.env[0]": secret,
        f"{LEADER}.command": secret,
        f"{LEADER}.passwrod": secret,
    }
    for path, value in places.items():
        document = samples.service()
        put(document, f"{LEADER}.env", [])
        found = samples.outcome(put(document, path, value)) if "[0]" not in path[-4:] else None
        if found is None:
            put(document, f"{LEADER}.env", [{}])
            found = samples.outcome(put(document, path, value))
        assert found.problems, path
        assert secret not in " ".join([*map(str, found.problems), *found.warnings]), path
