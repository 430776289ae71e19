# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: syshax
short_description: Run sysHAX's engines and conductor on a host
version_added: 0.1.0
description:
  - Looks at the host, decides, and changes what differs, in one execution.
  - The accelerator's engine is started first, then the CPU's in its IPC namespace, then the
    conductor; each has to answer its health check before the next is started.
  - An engine that isn't changed isn't restarted. A change of the accelerator's restarts the CPU's.
  - Images are pulled by the container engine when a unit starts; they are never removed.
options:
  state:
    description: Whether the host shall have it.
    type: str
    choices: [present, absent]
    default: present
  runtime:
    description: What runs the containers.
    type: str
    choices: [auto, docker, podman]
    default: auto
  runtime_since:
    description: The oldest Docker that will do; empty is 25.0.3.
    type: str
    default: ""
  accelerator:
    description: What prefills. V(stand-in) gives the container no device, for hosts without one.
    type: str
    choices: [nvidia, npu, stand-in]
    default: nvidia
  need_cuda:
    description: Whether a host without C(nvcc) is refused, as the document has it.
    type: bool
    default: true
  devices:
    description: How GPUs come into the container, C(--device nvidia.com/gpu=all) or C(--gpus=all).
    type: str
    choices: [cdi, gpus]
    default: cdi
  generation:
    description: Which flags the engines have; V(auto) tells it by the image's name and tag.
    type: str
    choices: [auto, v0, v1]
    default: auto
  network:
    description: The containers' network.
    type: str
    choices: [bridge, host]
    default: bridge
  ipc:
    description: Whether the engines share a namespace of their own, or the host's.
    type: str
    choices: [shareable, host]
    default: shareable
  listen:
    description: Address on the host at which the engines' ports are reached.
    type: str
    default: 127.0.0.1
  privileged:
    description: Whether the CPU's container is privileged, as the document has it.
    type: bool
    default: false
  models_dir:
    description: Directory of the models, mounted under the same name.
    type: path
    default: /home/models
  model:
    description: Path or name of the model, as C(vllm serve) takes it.
    type: str
    default: ""
  served_name:
    description: The name that clients call the model by.
    type: str
    default: ""
  max_model_len:
    description: Longest prompt and answer together, in tokens.
    type: int
    default: 8192
  block_size:
    description: Tokens of a KV block; 0 leaves it to the engines.
    type: int
    default: 0
  tensor_parallel:
    description: GPUs that the model is split over.
    type: int
    default: 1
  memory_utilization:
    description: Share of the GPUs' memory for the engine.
    type: float
    default: 0.8
  op_mode:
    description: C(INFERENCE_OP_MODE) of the CPU's engine; empty sets none.
    type: str
    choices: ["", fused]
    default: ""
  quantize:
    description: C(SYSHAX_QUANTIZE) of the CPU's engine; empty sets none.
    type: str
    choices: ["", q8_0, q4_0]
    default: ""
  nrc:
    description: C(NRC) of the CPU's engine; 0 sets none.
    type: int
    choices: [0, 2, 4]
    default: 0
  kv_transfer:
    description: Value of C(--kv-transfer-config) with V(v1); empty is vLLM's NIXL with its CPU end.
    type: dict
    default: {}
  start_timeout:
    description: Seconds within which an engine has to be healthy.
    type: int
    default: 900
  gpu:
    description: The accelerator's container.
    type: dict
    default: {}
    suboptions: &engine
      image:
        description: The image.
        type: str
        default: ""
      container:
        description: The container's name.
        type: str
        default: ""
      port:
        description: The engine's port.
        type: int
      shm_size:
        description: Size of its shared memory.
        type: str
        default: 64g
      dtype:
        description: Type of the weights.
        type: str
        default: half
      env:
        description: More variables.
        type: dict
        default: {}
      args:
        description: More flags of C(vllm serve).
        type: list
        elements: str
        default: []
      command:
        description: The whole command, in place of C(vllm serve) and all its flags.
        type: list
        elements: str
        default: []
      volumes:
        description: More volumes, as C(docker run --volume) takes them.
        type: list
        elements: str
        default: []
  cpu:
    description: The CPU's container.
    type: dict
    default: {}
    suboptions: *engine
  cpu_plan:
    description:
      - Options of filter P(flexai.xpu.cpu_plan#filter) for the binding of the CPU's engine, and
        C(enabled), which leaves it to the engine when it is V(false).
    type: dict
    default: {}
  host:
    description: Address that the conductor listens on.
    type: str
    default: 0.0.0.0
  port:
    description: Port that the conductor listens on.
    type: int
    default: 8010
  settings:
    description: More settings of the conductor, by dotted name.
    type: dict
    default: {}
  package:
    description:
      - V(bundle) installs our conductor from wheels in an environment of its own, without a
        network. V(system) takes the distribution's package, which has to be installed.
    type: str
    choices: [bundle, system]
    default: bundle
  version:
    description: Version of the bundle.
    type: str
    default: ""
  sha256:
    description: Digest of the bundle.
    type: str
    default: ""
  bundle:
    description: Path of the bundle on the host; needed while it isn't installed.
    type: path
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Take it all away
  flexai.xpu.syshax:
    state: absent
"""

RETURN = r"""
restarted:
  description: Units that were started or restarted, or would be.
  returned: success
  type: list
  elements: str
binding:
  description: Variables that bind the CPU's engine to cores.
  returned: when present
  type: dict
"""

import os
import shutil
import tarfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _records as records
from ..module_utils import _service as service
from ..module_utils import _syshax as syshax
from ..module_utils import _syshax_host as look
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host
from ..module_utils._syshax_options import argument_spec, settings_of
from ..module_utils._xpu_runtime import release_name

INSTALL_LIMIT_S = 600
OLDEST_PYTHON = "3.9"


def wanted_of(
    settings: syshax.Settings, binding: t.Mapping[str, str], params: t.Mapping[str, t.Any]
) -> look.Wanted:
    tree = syshax.config_tree(settings, (params["host"], params["port"]), params["settings"])
    texts = {
        syshax.UNITS[syshax.GPU]: syshax.engine_unit(settings, settings.gpu, {}),
        syshax.UNITS[syshax.CPU]: syshax.engine_unit(settings, settings.cpu, binding),
        syshax.UNITS[syshax.CONDUCTOR]: syshax.conductor_unit(params["package"]),
    }
    files = {syshax.HELPER: look.helper_text(), syshax.CONFIG: syshax.config_text(tree)}
    files.update({look.unit_file(unit): text for unit, text in texts.items()})
    bundled = params["package"] == "bundle"
    release = release_name(params["version"], params["sha256"]) if bundled else ""
    return look.Wanted(files, tuple(texts), release)


# -- changing --------------------------------------------------------------------------------
def install_release(host: Host, release: str, bundle: str, python: str) -> None:
    """An environment with the conductor, made where it stays: its programs name its directory.

    One without the mark of completeness is the rest of a run that was killed.
    """
    if not bundle or not host.exists(bundle):
        raise XpuError(
            f"The conductor's bundle {bundle or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    if not python:
        raise XpuError(
            "The host has no python3.", f"install Python {OLDEST_PYTHON} or newer on it."
        )
    final = f"{syshax.RELEASES}/{release}"
    shutil.rmtree(host.path(final), ignore_errors=True)
    wheels = f"{final}/wheels"
    os.makedirs(host.path(final), mode=0o755)
    with tarfile.open(host.path(bundle)) as archive:
        for member in archive.getmembers():
            if not member.isfile() or os.path.isabs(member.name) or ".." in member.name.split("/"):
                raise XpuError(
                    f"{bundle} holds {member.name}, which is no plain file under it.",
                    "build it with `make dist`.",
                )
            target = host.path(f"{final}/{member.name}")
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            source = archive.extractfile(member)
            if source is None:  # isfile() said otherwise
                raise AssertionError(member.name)
            with open(target, "wb") as out:
                shutil.copyfileobj(source, out)
    # Debian's python3 has no ensurepip; a wheel of pip runs as it is.
    pip = [f"{final}/bin/python", f"{host.glob(f'{wheels}/pip-*.whl')[0]}/pip"]
    offline = ["--no-index", f"--find-links={wheels}", "--quiet", "--disable-pip-version-check"]
    own = host.glob(f"{wheels}/flexai_syshax-*.whl")[0]
    _must(host, [python, "-m", "venv", "--without-pip", final])
    requirements = ["--require-hashes", f"--requirement={final}/requirements.txt"]
    _must(host, [*pip, "install", *offline, *requirements])
    _must(host, [*pip, "install", *offline, "--no-deps", own])
    shutil.rmtree(host.path(wheels))
    host.write(f"{final}/{look.COMPLETE}", "")


def _must(host: Host, argv: t.Sequence[str]) -> None:
    done = host.run(argv, timeout_s=INSTALL_LIMIT_S)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-800:]
        raise XpuError(
            f"{' '.join(argv)} ended with rc {done.rc}: {tail}.",
            f"the conductor needs Python {OLDEST_PYTHON} to 3.13 with module venv.",
        )


def apply(host: Host, wanted: look.Wanted, steps: look.Steps, bundle: str, python: str) -> None:
    # The record comes first: killed after it, what there is of ours is known to be ours.
    # So it is with units that have new files and still run with the old ones.
    record = {"release": wanted.release, "made": directories_made(host)}
    conductor = (syshax.UNITS[syshax.CONDUCTOR],) if steps.reload else ()
    records.write(host, look.COMPONENT, {**record, "pending": [*steps.restart, *conductor]})
    if steps.release:
        install_release(host, wanted.release, bundle, python)
        host.point(syshax.PROGRAM, f"{syshax.RELEASES}/{wanted.release}/bin/syshax")
    for path in steps.files:
        host.write(path, wanted.files[path], mode=0o755 if path == syshax.HELPER else 0o644)
    for unit in steps.enable:
        host.point(look.wanted_by(unit), look.unit_file(unit))
    if host.is_real:
        host.run(["systemctl", "daemon-reload"])
        for unit in steps.restart:
            _start(host, unit)
        if steps.reload:
            service.reload(host, syshax.UNITS[syshax.CONDUCTOR])
    # What ran till now is needed no longer.
    for old in host.glob(f"{syshax.RELEASES}/*"):
        if old != f"{syshax.RELEASES}/{wanted.release}":
            shutil.rmtree(host.path(old), ignore_errors=True)
    records.write(host, look.COMPONENT, record)


def directories_made(host: Host) -> list[str]:
    """Those of files of ours that were not there before us, now or when the record was begun."""
    known = records.read(host, look.COMPONENT).get("made")
    if known is not None:
        return list(known)
    shared = (os.path.dirname(syshax.CONFIG), os.path.dirname(syshax.HELPER))
    return [directory for directory in shared if not host.exists(directory)]


def _start(host: Host, unit: str) -> None:
    """Returns when the unit's health check has passed: that is part of its start."""
    host.run(["systemctl", "reset-failed", unit])
    # systemd has its own limit (TimeoutStartSec), which is the site's.
    if host.run(["systemctl", "restart", unit], timeout_s=24 * 3600).rc != 0:
        raise XpuError(
            f"{unit} did not become healthy. It said: {service.last_words(host, unit)}.",
            f"mend what it names (`journalctl -u {unit}` has more), or give it longer "
            "(syshax_start_timeout), then run again.",
        )


def remove(host: Host) -> None:
    units = tuple(reversed(list(syshax.UNITS.values())))
    if host.is_real:
        host.run(["systemctl", "disable", "--now", *units], timeout_s=service.START_LIMIT_S)
    for unit in units:
        host.remove(look.wanted_by(unit))
        host.remove(look.unit_file(unit))
    for path in (syshax.HELPER, syshax.CONFIG):
        host.remove(path)
    if host.link(syshax.PROGRAM).startswith(f"{syshax.RELEASES}/"):
        host.remove(syshax.PROGRAM)
    shutil.rmtree(host.path(syshax.RELEASES), ignore_errors=True)
    for state in ("/var/lib/private/syshax", "/var/lib/syshax"):
        if host.link(state):
            host.remove(state)
        else:
            shutil.rmtree(host.path(state), ignore_errors=True)
    for directory in directories_made(host):
        host.remove_empty(directory)
    if host.is_real:
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "reset-failed", *units])
    records.write(host, look.COMPONENT, {})


# -- entering --------------------------------------------------------------------------------
def _text(files: t.Mapping[str, str | None]) -> str:
    """For the diff: what is in our files, but for the helper's program."""
    return "".join(
        f"{path}:\n{text}" if path != syshax.HELPER else f"{path}\n"
        for path, text in files.items()
        if text is not None
    )


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    if params["state"] == "absent":
        paths = [syshax.CONFIG, *(look.unit_file(unit) for unit in syshax.UNITS.values())]
        state = look.look_at_state(host, paths)
        if state.record and not check:
            remove(host)
        before = _text(state.files) if state.record else ""
        return {
            "changed": bool(state.record),
            "restarted": [],
            "diff": {"before": before, "after": ""},
        }
    machine = look.look_at_machine(host)
    runtime = look.choose_runtime(params["runtime"], machine.versions, params["runtime_since"])
    settings = settings_of(params, runtime)
    look.check_accelerator(settings, machine, params["need_cuda"])
    look.check_model(host, settings)
    binding = look.bind(settings, machine, params["cpu_plan"])
    settings = settings._replace(cpu_ranks=binding.ranks)
    wanted = wanted_of(settings, binding.env, params)
    state = look.look_at_state(host, wanted.files)
    # A check can't install the package that the run itself would have there by now.
    if params["package"] == "system" and not check and not host.program(syshax.SYSTEM_PROGRAM):
        raise XpuError(
            f"syshax_package: system is wanted, and there is no {syshax.SYSTEM_PROGRAM}.",
            "install the distribution's package (`dnf install sysHAX` on openEuler).",
        )
    steps = look.plan(state, wanted)
    if steps and not check:
        apply(host, wanted, steps, params["bundle"] or "", machine.python)
    return {
        "changed": bool(steps),
        "restarted": list(steps.restart),
        "binding": dict(binding.env),
        "warnings": list(binding.warnings),
        "diff": {
            "before": _text(state.files) + f"conductor {state.release or 'absent'}\n",
            "after": _text(wanted.files) + f"conductor {wanted.release or 'of the system'}\n",
        },
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)

    def body(m: AnsibleModule) -> dict[str, t.Any]:
        result = converge(Host(m.params["root"]), m.params, m.check_mode)
        for warning in result.pop("warnings", []):
            m.warn(warning)
        return result

    run_module(module, body)


if __name__ == "__main__":
    main()
