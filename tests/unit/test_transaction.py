# SPDX-License-Identifier: GPL-3.0-or-later
"""A change that needs a quiet node: drained, changed, judged, released; killed, taken up."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils import _cluster as cluster_api
from ansible_collections.flexai.xpu.plugins.module_utils import _drain as drain
from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_driver as driver
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils import _resume as resume
from ansible_collections.flexai.xpu.plugins.module_utils import _transaction as transaction
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge
from ansible_collections.flexai.xpu.plugins.modules import node_drain, node_transaction
from ansible_collections.flexai.xpu.plugins.modules.node_probe import probe

from . import hostroot
from .drivermachine import Machine
from .test_driver import desired
from .test_playbooks import run as run_playbook
from .test_writers import snapshot

ROLE = Path(__file__).parents[2] / "roles/node_transaction/tasks"
OLD, NEW = "580.65.06", hostroot.DRIVER
Object = dict[str, Any]
BUDGET = "The disruption budget web needs 1 healthy pods and has 1 currently"


# -- a cluster in a file -----------------------------------------------------------------------


def pod(name: str, node: str = "gpu1", kind: str = "ReplicaSet", **spec: Any) -> Object:
    owners = [{"kind": kind, "controller": True}] if kind else []
    metadata = {"namespace": "team", "name": name, "ownerReferences": owners}
    return {"metadata": metadata, "spec": {"nodeName": node, **spec}, "status": {}}


def node(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels, "annotations": {}}, "spec": {}}


def merge(target: Object, patch: Object) -> None:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


class FakeCluster:
    """The API as the drain uses it. Its state is one file, so that it outlives a killed run."""

    def __init__(self, file: Path, *things: Object) -> None:
        self.file = file
        self.blocked: dict[str, str] = {}
        self.before_change: Callable[[], None] = lambda: None
        if things:
            nodes = [thing for thing in things if "nodeName" not in thing["spec"]]
            pods = [thing for thing in things if "nodeName" in thing["spec"]]
            self.save({"nodes": {each["metadata"]["name"]: each for each in nodes}, "pods": pods})

    def load(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def save(self, state: dict[str, Any]) -> None:
        scratch = self.file.with_suffix(".new")
        scratch.write_text(json.dumps(state))
        scratch.rename(self.file)

    def get(self, path: str, **_more: Any) -> Object | None:
        found: Object | None = self.load()["nodes"].get(path.rsplit("/", 1)[1])
        return found

    def list(self, path: str, **_more: Any) -> list[Object]:
        state = self.load()
        found: list[Object] = state["pods"] if path == drain.PODS else [*state["nodes"].values()]
        return found

    def change(self, verb: str, path: str, body: Object | None = None) -> Object:
        assert verb == "patch" and body is not None
        self.before_change()
        state = self.load()
        merge(state["nodes"][path.rsplit("/", 1)[1]], copy.deepcopy(body))
        # What a DaemonSet does: its pods follow the labels they choose by.
        for each in state["nodes"].values():
            state["pods"] = [p for p in state["pods"] if not self._left_behind(p, each)]
        self.save(state)
        return {}

    @staticmethod
    def _left_behind(each: Object, on: Object) -> bool:
        chosen = each["spec"].get("nodeSelector") or {}
        labels = on["metadata"].get("labels") or {}
        here = each["spec"]["nodeName"] == on["metadata"]["name"]
        return here and any(labels.get(key) != value for key, value in chosen.items())

    def evict(self, _namespace: str, name: str) -> str:
        if name in self.blocked:
            return self.blocked[name]
        self.before_change()
        state = self.load()
        state["pods"] = [each for each in state["pods"] if each["metadata"]["name"] != name]
        self.save(state)
        return ""

    # -- what tests look at
    def node(self, name: str = "gpu1") -> Object:
        found: Object = self.load()["nodes"][name]
        return found

    def pods(self) -> Sequence[str]:
        return [each["metadata"]["name"] for each in self.load()["pods"]]


class Time:
    """A clock that goes on by being slept on."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


PARAMS = {
    "reason": "the driver is replaced",
    "pause_labels": ["gpupool.com/gpu-ready"],
    "max_unavailable": 1,
    "limit_s": 60,
    "turn_limit_s": 60,
    "delete_orphans": False,
}


def run_drain(
    cluster: FakeCluster, state: str, name: str = "gpu1", check: bool = False, **more: Any
) -> dict[str, Any]:
    time = Time()
    one = drain.Drain(cluster, name, lambda: time.now, time.sleep)  # type: ignore[arg-type]
    return node_drain.converge(one, {**PARAMS, "state": state, **more}, check)


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    ready = {"gpupool.com/gpu-ready": "true"}
    return FakeCluster(
        tmp_path / "cluster.json",
        node("gpu1", **ready),
        node("gpu2", **ready),
        pod("web"),
        pod("elsewhere", node="gpu2"),
        pod("kube-proxy", kind="DaemonSet"),
        pod("plugin", kind="DaemonSet", nodeSelector=ready),
    )


# -- drain -------------------------------------------------------------------------------------


def test_a_drain_takes_the_pods_that_hold_cards_and_a_release_leaves_the_node_as_it_was(
    cluster: FakeCluster,
) -> None:
    before = cluster.node()
    predicted = run_drain(cluster, "drained", check=True)
    assert cluster.node() == before
    done = run_drain(cluster, "drained")
    assert done == predicted
    assert done["changed"] and done["pods"] == ["team/web"]
    assert cluster.pods() == ["elsewhere", "kube-proxy"]
    assert cluster.node()["spec"] == {"unschedulable": True}
    assert not run_drain(cluster, "drained")["changed"]
    assert run_drain(cluster, "released")["changed"]
    assert cluster.node() == before
    assert not run_drain(cluster, "released")["changed"]


def test_a_cordon_of_somebody_elses_stays(cluster: FakeCluster) -> None:
    cluster.change("patch", f"{cluster_api.NODES}/gpu1", {"spec": {"unschedulable": True}})
    run_drain(cluster, "drained")
    assert run_drain(cluster, "released")["diff"]["after"] == "cordoned\n"
    assert cluster.node()["spec"] == {"unschedulable": True}
    assert drain.MARK not in cluster.node()["metadata"]["annotations"]


def test_a_drain_that_a_budget_blocks_waits_its_time_then_uncordons_and_names_both(
    cluster: FakeCluster,
) -> None:
    before = cluster.node()
    cluster.blocked["web"] = BUDGET
    with pytest.raises(XpuError) as error:
        run_drain(cluster, "drained", limit_s=30)
    assert error.value.msg == (
        f"Node gpu1 could not be drained within 30 s: team/web ({BUDGET}). It is uncordoned again; "
        "the host was not changed."
    )
    assert "node_transaction_drain_limit_s" in error.value.remedy
    assert cluster.node() == before


def test_a_budget_that_gives_way_in_time_is_waited_for(cluster: FakeCluster) -> None:
    cluster.blocked["web"] = BUDGET
    time = Time()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if time.now > 10:
            cluster.blocked.clear()

    one = drain.Drain(cluster, "gpu1", lambda: time.now, sleep)  # type: ignore[arg-type]
    assert node_drain.converge(one, {**PARAMS, "state": "drained"}, False)["changed"]
    assert "web" not in cluster.pods()


def test_pods_that_nobody_would_make_again_are_named_before_the_node_is_cordoned(
    tmp_path: Path,
) -> None:
    cluster = FakeCluster(tmp_path / "c.json", node("gpu1"), pod("notebook", kind=""))
    before = cluster.load()
    with pytest.raises(XpuError, match="team/notebook has no controller") as error:
        run_drain(cluster, "drained")
    assert "node_transaction_delete_orphans: true" in error.value.remedy
    assert cluster.load() == before
    assert run_drain(cluster, "drained", delete_orphans=True)["changed"]
    assert cluster.pods() == []


def test_no_more_nodes_are_cordoned_at_once_than_allowed(cluster: FakeCluster) -> None:
    run_drain(cluster, "drained", "gpu2")
    with pytest.raises(XpuError, match="waited 60 s for its turn while gpu2 was being changed"):
        run_drain(cluster, "drained")
    assert cluster.node()["spec"] == {}
    assert run_drain(cluster, "drained", max_unavailable=2)["changed"]


def test_two_runs_that_see_the_same_free_place_do_not_both_take_it(cluster: FakeCluster) -> None:
    """gpu1 is marked between gpu2's look and its own mark: gpu2 gives way, and comes after it."""
    time = Time()
    seen: list[str] = []

    def gpu1_too() -> None:
        if not seen:
            seen.append("gpu1")
            run_drain(cluster, "drained", "gpu1")

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        seen.append("gpu2 waits" if drain.mark_of(cluster.node("gpu2")) is None else "both")
        run_drain(cluster, "released", "gpu1")

    cluster.before_change = gpu1_too
    two = drain.Drain(cluster, "gpu2", lambda: time.now, sleep)  # type: ignore[arg-type]
    two.take_turn(1, 60, "x")
    assert seen == ["gpu1", "gpu2 waits"]
    assert drain.mark_of(cluster.node("gpu2")) is not None
    assert drain.mark_of(cluster.node("gpu1")) is None


def test_after_a_failed_node_no_other_is_begun_until_it_is_mended(cluster: FakeCluster) -> None:
    run_drain(cluster, "drained", "gpu2")
    assert run_drain(cluster, "held", "gpu2", reason="it broke")["changed"]
    assert not run_drain(cluster, "held", "gpu2", reason="it broke")["changed"]
    with pytest.raises(XpuError, match="failed on gpu2, which is still cordoned") as error:
        run_drain(cluster, "drained")
    assert drain.MARK in error.value.remedy
    assert json.loads(cluster.node("gpu2")["metadata"]["annotations"][drain.MARK])["held"]
    run_drain(cluster, "drained", "gpu2")  # the re-run takes it up
    run_drain(cluster, "released", "gpu2")
    assert run_drain(cluster, "drained")["changed"]


def test_the_api_servers_words_about_a_budget_are_kept() -> None:
    body = {"message": "Cannot evict pod", "details": {"causes": [{"message": BUDGET}]}}

    class Client:
        def request(self, *_words: Any, **_more: Any) -> Any:
            error = RuntimeError("429")
            error.status, error.body = 429, json.dumps(body)  # type: ignore[attr-defined]
            raise error

    assert cluster_api.Cluster(Client(), "k").evict("team", "web") == BUDGET


# -- plan and verdict --------------------------------------------------------------------------


def plan_of(host: Host) -> dict[str, str]:
    steps = probe(host, "h", desired())["plan"]
    return {step["component"]: step["action"] for step in steps}


def test_only_a_change_of_a_running_driver_needs_a_quiet_node(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "host")
    assert "node_transaction" not in plan_of(machine.host)
    machine.converge(OLD)
    found = probe(machine.host, "h", desired())["plan"][0]
    assert (found["component"], found["action"]) == ("node_transaction", "change")
    assert found["reason"] == (
        f"the running driver {OLD} is replaced: the node is cordoned and drained first, and "
        "uncordoned when it works"
    )


def test_a_transaction_that_was_broken_off_is_in_the_plan_and_in_the_verdict(
    ready_host: tuple[Host, dict[str, object]],
) -> None:
    host, wanted = ready_host
    note = {"step": "reboot", "reason": "gpu1 must be rebooted"}
    records.write(host, transaction.RECORD, note)
    result = probe(host, "h", wanted)
    assert result["plan"][0]["reason"] == (
        "a change of this node was broken off at step reboot and is taken up: gpu1 must be rebooted"
    )
    verdict = judge(host, "h", result["wanted"], {}, transaction=True)
    assert not verdict["ready"]
    assert verdict["components"][-1] == {
        "name": "node_transaction",
        "wanted": "finished",
        "found": "reboot",
        "state": "pending-reboot",
        "reason": "cordoned since step reboot: gpu1 must be rebooted",
    }


# -- every step, killed everywhere -------------------------------------------------------------


def steps(machine: Machine, cluster: FakeCluster) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What the role does, in its order; a test below compares it with the role's own files."""

    def note(state: str, step: str | None = None) -> Callable[[], Any]:
        params = {"state": state, "step": step, "reason": "why"}
        return lambda: node_transaction.converge(machine.host, params, False)

    yield "node_transaction drain", note("open", "drain")
    yield "node_drain drained", lambda: run_drain(cluster, "drained")
    yield "node_transaction change", note("open", "change")
    yield "include_role", lambda: machine.converge(NEW)
    yield "node_transaction reboot", note("open", "reboot")
    yield "node_transaction validate", note("open", "validate")
    yield "node_verdict", lambda: None
    yield "node_transaction release", note("open", "release")
    yield "node_drain released", lambda: run_drain(cluster, "released")
    yield "node_transaction closed", note("closed")


def run_all(machine: Machine, cluster: FakeCluster) -> None:
    if "node_transaction" in plan_of(machine.host):
        for _name, step in steps(machine, cluster):
            step()
    elif plan_of(machine.host)["nvidia_driver"] != "ok":
        machine.converge(NEW)


MODULES = ("flexai.xpu.node_transaction", "flexai.xpu.node_drain", "flexai.xpu.node_verdict")


def _named(task: dict[str, Any]) -> Iterator[str]:
    for part in ("block",):
        for inner in task.get(part, ()):
            yield from _named(inner)
    include = str(task.get("ansible.builtin.include_tasks", ""))
    if include:
        file = ROLE / include.rsplit("/", 1)[1]
        for inner in yaml.safe_load(file.read_text()):
            yield from _named(inner)
    if "ansible.builtin.include_role" in task:
        yield "include_role"
    for module in MODULES:
        if module in task:
            values = task[module]
            how = values.get("state") or values.get("step") or "drained"
            name = module.rsplit(".", 1)[1]
            yield name if name == "node_verdict" else f"{name} {how}"


def test_these_are_the_steps_of_the_role(tmp_path: Path) -> None:
    first, main = yaml.safe_load((ROLE / "main.yml").read_text())
    assert list(_named(first)) == ["include_role"]  # what can be had is had before a pod is moved
    found = list(_named(main))
    # Where the host boots it may go on by itself; then the change is gone through once more.
    again = found.index("node_transaction reboot") + 1
    wanted = ["node_transaction armed", "node_transaction settled", "include_role"]
    assert [found.pop(again) for _step in wanted] == wanted
    machine = Machine(tmp_path / "host")
    assert found == [name for name, _step in steps(machine, FakeCluster(tmp_path / "c"))]


class Killer:
    """Sends SIGKILL to its own process at the n-th operation that changes something."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class DoomedHost(Host):
    """A host whose every change may be the last thing that the process does."""

    def __init__(self, root: str, runner: Any, killer: Killer) -> None:
        def run(argv: Any, timeout_s: float) -> Completed:
            killer()
            done: Completed = runner(argv, timeout_s)
            killer()
            return done

        super().__init__(root, runner=run)
        self.killer = killer

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        self.killer()
        super().write(path, text, mode)

    def remove(self, path: str) -> None:
        self.killer()
        super().remove(path)


class DoomedMachine(Machine):
    killer: Killer

    @property
    def host(self) -> Host:
        return DoomedHost(str(self.root), self.run, self.killer)

    def _sh(self, argv: list[str]) -> Completed:
        # The installer itself has removed the former driver when this one strikes.
        self._gone()
        self.killer()
        return super()._sh(argv)


def world(directory: Path) -> tuple[DoomedMachine, FakeCluster]:
    machine = DoomedMachine(directory / "host")
    machine.killer = Killer(-1)
    machine.converge(OLD)
    machine.installer(NEW)
    return machine, FakeCluster(directory / "c.json", node("gpu1"), pod("web"))


def run_in_a_child(machine: DoomedMachine, cluster: FakeCluster, killed_at: int) -> bool:
    """Whether the run was killed; it is a process of its own, so nothing is tidied up."""
    child = os.fork()
    if child == 0:
        machine.killer = Killer(killed_at)
        cluster.before_change = machine.killer
        try:
            run_all(machine, cluster)
        finally:
            os._exit(0)
    _pid, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("fails", [False, True], ids=["works", "is rolled back"])
def test_killed_at_any_operation_a_re_run_converges_and_the_node_takes_pods_again(
    tmp_path: Path, fails: bool
) -> None:
    killed_at = 0
    while True:
        machine, cluster = world(tmp_path / str(killed_at))
        machine.broken = {NEW} if fails else set()
        killed = run_in_a_child(machine, cluster, killed_at)
        half = records.read(machine.host, transaction.RECORD)
        touched = driver.library_version(machine.host) != OLD
        assert not (killed and touched) or half or not drain.mark_of(cluster.node()), killed_at
        machine.killer, cluster.before_change = Killer(-1), lambda: None
        machine.broken = set()
        run_all(machine, cluster)
        assert driver.library_version(machine.host) == NEW, killed_at
        assert cluster.node()["spec"] == {}, killed_at
        assert cluster.node()["metadata"]["annotations"] == {}, killed_at
        assert records.read(machine.host, transaction.RECORD) == {}, killed_at
        assert plan_of(machine.host)["nvidia_driver"] == "ok", killed_at
        assert "node_transaction" not in plan_of(machine.host)
        assert machine.converge(NEW, state="absent")["changed"]
        if not killed:
            break
        killed_at += 1
    assert killed_at > 15, "the property was tried at fewer operations than the change has"


@pytest.mark.parametrize(
    ("step", "library", "loaded", "state", "wanted"),
    [
        ("drain", "", "", "", True),
        ("change", OLD, OLD, "installed", True),
        ("change", OLD, OLD, "installing", False),
        ("change", "", "", "installing", False),
        ("reboot", NEW, OLD, "installed", False),
        ("validate", NEW, NEW, "installed", True),
    ],
)
def test_pods_come_back_after_a_failure_only_to_a_whole_driver(
    step: str, library: str, loaded: str, state: str, wanted: bool, bare_host: Host
) -> None:
    facts = driver.observe(bare_host, *_nothing())._replace(
        library=library, loaded=loaded, record={"state": state}
    )
    assert transaction.may_release(step, facts) == wanted


def _nothing() -> tuple[Any, driver.Wanted]:
    from ansible_collections.flexai.xpu.plugins.module_utils._packages import Packages

    return Packages("dpkg", {}), driver.Wanted("")


# -- through the real playbook -----------------------------------------------------------------

# An installer of host roots: a driver there is what stands in the files that every tool reads.
INSTALLER = """#!/bin/sh
R="${{0%%/var/cache/*}}"
[ ! -e "$R/sim/broken-{version}" ] || {{ rm -f "$R/{libcuda}"; echo broken >&2; exit 1; }}
: > "$R/{libraries}/libcuda.so.{version}"
ln -sfn libcuda.so.{version} "$R/{libcuda}"
sed -i 's/libcuda.so.[0-9.]*/libcuda.so.{version}/' "$R/sim/cdi"
[ ! -e "$R/sim/goes-away" ] || : > "$R/sim/gone"
[ ! -e "$R/sim/module-stays" ] || exit 0
echo "NVRM version: NVIDIA UNIX x  {version}  x" > "$R/proc/driver/nvidia/version"
printf '{version}, GPU-0\\n{version}, GPU-1\\n' > "$R/sim/nvidia-smi"
"""
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def _site(tmp_path: Path) -> Any:
    """gpu1 has another driver than is wanted, gpu2 the wanted one; both are ready otherwise."""
    artefacts = tmp_path / "artefacts"
    manifest = hostroot.manifest(artefacts)
    document = yaml.safe_load(manifest.read_text())
    entry = document["artefacts"][0]
    assert entry["name"] == "nvidia-driver"
    installers = {}
    for version in (OLD, NEW):
        text = INSTALLER.format(
            version=version, libraries=LIBRARIES, libcuda=f"{LIBRARIES}/libcuda.so.1"
        )
        installers[version] = hostroot.put(artefacts, f"/{version}.run", text)
    new = installers[NEW]
    entry.update(file=new.name, source=new.name, sha256=hostroot.digest(new))
    manifest.write_text(yaml.safe_dump(document))
    hosts = {}
    for name in ("gpu1", "gpu2"):
        root, _desired = hostroot.ready(tmp_path / name)
        (root / "usr/bin/sh").symlink_to("/bin/sh")
        hostroot.put(root, "/usr/bin/systemctl", "#!/bin/sh\n", 0o755)
        hosts[name] = {"flexai_root": str(root)}
    root = tmp_path / "gpu1"
    hostroot.install_driver(root, OLD)
    old = installers[OLD]
    path = f"/var/cache/flexai-xpu/{hostroot.digest(old)}/{old.name}"
    hostroot.put(root, path, old.read_text(), 0o755)
    record = {"version": OLD, "state": "installed", "installer": path, "flags": []}
    hostroot.put(root, records.path("nvidia_driver"), json.dumps(record))
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_manifest": str(manifest),
        "preflight_min_free_mib": 1,
        "xpu_runtime_version": hostroot.XPU,
    }
    return {"all": {"vars": variables, "children": {"flexai_nodes": {"hosts": hosts}}}}


def test_site_replaces_a_running_driver_in_a_transaction_and_the_second_run_is_silent(
    tmp_path: Path,
) -> None:
    site = _site(tmp_path)
    done = run_playbook(tmp_path, site, "site")
    assert done.returncode == 0, done.stdout
    assert "gpu1  node_transaction" in done.stdout
    assert "PLAY [Change what needs a quiet node]" in done.stdout
    assert driver.library_version(Host(str(tmp_path / "gpu1"))) == NEW
    assert not (tmp_path / "gpu1" / records.path(transaction.RECORD).lstrip("/")).exists()
    again = run_playbook(tmp_path, site, "site")
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout and "changed=1" not in again.stdout
    assert "plan: nothing to do on 2 hosts" in again.stdout


def test_site_rolls_back_names_the_cause_and_still_shows_every_verdict(tmp_path: Path) -> None:
    site = _site(tmp_path)
    hostroot.put(tmp_path / "gpu1", f"/sim/broken-{NEW}", "")
    done = run_playbook(tmp_path, site, "site")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"The former driver {OLD} is in force again. Remedy: " in said
    assert "The node takes pods again." in said
    assert "PLAY [Verdict]" in done.stdout
    assert driver.library_version(Host(str(tmp_path / "gpu1"))) == OLD
    assert not (tmp_path / "gpu1" / records.path(transaction.RECORD).lstrip("/")).exists()


def test_check_mode_tells_the_transaction_and_changes_nothing(tmp_path: Path) -> None:
    site = _site(tmp_path)
    before = snapshot(tmp_path / "gpu1")
    done = run_playbook(tmp_path, site, "site", "--check", "--diff")
    assert "gpu1 node_transaction change the running driver" in " ".join(done.stdout.split())
    assert f"-driver {OLD}" in done.stdout and f"+driver {NEW}" in done.stdout
    assert "rescued=1" not in done.stdout, done.stdout
    assert snapshot(tmp_path / "gpu1") == before


def test_a_reboot_that_nobody_allowed_stops_there_and_is_taken_up_after_it(tmp_path: Path) -> None:
    site = _site(tmp_path)
    root = tmp_path / "gpu1"
    hostroot.put(root, "/sim/module-stays", "")
    done = run_playbook(tmp_path, site, "site")
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert (
        f"gpu1 must be rebooted (kernel module {OLD}; a reboot loads {NEW}), and "
        "node_transaction_reboot_ok is not true."
    ) in said
    assert "node_transaction finished reboot pending-reboot cordoned since step reboot" in said
    note = json.loads((root / records.path(transaction.RECORD).lstrip("/")).read_text())
    assert note["step"] == "reboot"
    # As Ansible brought the module to the host, in one archive, so it is packed for after the boot.
    program = root / resume.PROGRAM.lstrip("/")
    ran = subprocess.run(
        [sys.executable, "-I", program, root], capture_output=True, text=True, check=False
    )
    assert "has not booted since" in ran.stdout, ran
    # The reboot.
    hostroot.put(root, "/proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX x  {NEW}  x\n")
    hostroot.put(root, "/sim/nvidia-smi", f"{NEW}, GPU-0\n{NEW}, GPU-1\n")
    done = run_playbook(tmp_path, site, "site")
    assert done.returncode == 0, done.stdout
    assert "was broken off at step reboot and is taken up" in " ".join(done.stdout.split())
    assert not program.exists()
    assert not (root / records.path(transaction.RECORD).lstrip("/")).exists()


def test_a_host_lost_in_the_middle_stops_no_other_and_the_report_says_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpu1's answer to the change never comes; gpu2 lacks its runtime, and gets it."""
    site = _site(tmp_path)
    mark = tmp_path / "gpu1/sim/gone"
    hostroot.put(tmp_path / "gpu1", "/sim/goes-away", "")
    monkeypatch.setenv("LOSSY_MARK", str(mark))
    monkeypatch.setenv("ANSIBLE_CONNECTION_PLUGINS", str(Path(__file__).parent / "connections"))
    hosts = site["all"]["children"]["flexai_nodes"]["hosts"]
    hosts["gpu1"]["ansible_connection"] = "lossy"
    link = tmp_path / "gpu2/opt/xpu/current"
    link.unlink()

    verdict = tmp_path / "verdict.json"
    done = run_playbook(tmp_path, site, "site", "-e", f"flexai_verdict_file={verdict}")
    assert done.returncode != 0
    assert link.is_symlink()
    told = {each["name"]: each for each in json.loads(verdict.read_text())["nodes"]}
    assert told["gpu2"]["ready"] and not told["gpu1"]["ready"]
    assert told["gpu1"]["components"] == [
        {
            "name": "host",
            "wanted": "a verdict",
            "found": "",
            "state": "failed",
            "reason": "the run ended before the host was judged, in the middle of "
            "node_transaction, nvidia_driver; how far it came stands on the host, and the next "
            "run takes it up",
        }
    ]
    # Back again, it is taken up where it was.
    hosts["gpu1"]["ansible_connection"] = "local"
    assert (tmp_path / "gpu1" / records.path(transaction.RECORD).lstrip("/")).exists()
    done = run_playbook(tmp_path, site, "site")
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "gpu1" / records.path(transaction.RECORD).lstrip("/")).exists()


@pytest.mark.parametrize("playbook", ["site", "nvidia"])
@pytest.mark.parametrize("quiet", [True, False], ids=["drained", "not drained"])
def test_where_every_host_is_lost_the_verdict_still_says_what_is_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, playbook: str, quiet: bool
) -> None:
    """Ansible ends a run whose hosts are all lost; the controller is never lost, and shows it."""
    site = _site(tmp_path)
    hosts = site["all"]["children"]["flexai_nodes"]["hosts"]
    del hosts["gpu2"]
    hosts["gpu1"]["ansible_connection"] = "lossy"
    root = tmp_path / "gpu1"
    if not quiet:  # a host without a driver is changed among the others, at once
        for path in (
            "proc/driver/nvidia/version",
            f"usr/lib/x86_64-linux-gnu/libcuda.so.{OLD}",
            "usr/lib/x86_64-linux-gnu/libcuda.so.1",
            records.path("nvidia_driver").lstrip("/"),
        ):
            (root / path).unlink()
    hostroot.put(root, "/sim/goes-away", "")
    monkeypatch.setenv("LOSSY_MARK", str(root / "sim/gone"))
    monkeypatch.setenv("ANSIBLE_CONNECTION_PLUGINS", str(Path(__file__).parent / "connections"))
    verdict = tmp_path / "verdict.json"
    # Of the group, as a site writes it: the controller has no such variable of its own.
    site["all"]["children"]["flexai_nodes"]["vars"] = {"flexai_verdict_file": str(verdict)}
    done = run_playbook(tmp_path, site, playbook)
    assert done.returncode != 0
    (told,) = json.loads(verdict.read_text())["nodes"]
    assert (told["name"], told["ready"]) == ("gpu1", False)
    assert "before the host was judged, in the middle of" in told["components"][0]["reason"]
    assert "Site default is not ready." in done.stdout
