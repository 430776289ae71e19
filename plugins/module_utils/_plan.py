# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""One look at a host, and what to do about it.

``observe`` is all the input there is; ``plan`` is pure. The desired state is plain data, so that it
can travel as a module argument and stand in a test as a literal.
"""

from __future__ import annotations

import os
import typing as t

from . import _container_engine as engines
from . import _container_toolkit as toolkit
from . import _containerd as containerd
from . import _crio as crio
from . import _cuda_toolkit as cuda
from . import _docker as docker
from . import _images as images
from . import _nvidia_driver as driver
from . import _owners as owners
from . import _packages as packages
from . import _rancher as rancher
from . import _records as records
from . import _transaction as transaction
from . import _xpu_agent as agent
from . import _xpu_runtime as xpu
from ._decision import BLOCKED, CHANGE, INSTALL, OK, Claim, Decision
from ._host import Host, system_of

# Order of installation: each component may rest on those before it.
COMPONENTS = (
    "nvidia_driver",
    "cuda_toolkit",
    "container_engine",
    "container_toolkit",
    "container_runtime",
    "xpu_runtime",
    "xpu_agent",
    "images",
)
# Which artefact a component is installed from; the runtime's configuration needs none.
ARTEFACT_OF = {
    "nvidia_driver": "nvidia-driver",
    "cuda_toolkit": "cuda-toolkit",
    "container_toolkit": "nvidia-container-toolkit",
    "xpu_runtime": "xpu-runtime",
    "xpu_agent": agent.ARTEFACT,
}
# Systems that the node path has been run on (True, openEuler by its look-alike in the testbed) or
# only rendered and unit-tested for (False). A release such as 9.4 goes by its first number.
SYSTEMS = {
    ("debian", "12"): True,
    ("openEuler", "24.03"): True,
    ("ubuntu", "24.04"): True,
    ("almalinux", "9"): False,
    ("debian", "11"): False,
    ("openEuler", "22.03"): False,
    ("rhel", "9"): False,
    ("rocky", "9"): False,
    ("ubuntu", "20.04"): False,
    ("ubuntu", "22.04"): False,
}


class HostFacts(t.NamedTuple):
    system: str
    release: str
    architecture: str
    kernel: str
    euid: int
    free_mib: int
    engine: str


class Facts(t.NamedTuple):
    host: HostFacts
    driver: driver.Facts
    # None where no CUDA toolkit is wanted.
    cuda: cuda.Facts | None
    # None where the role is not to install it.
    engine: engines.Facts | None
    toolkit: toolkit.Facts
    containerd: containerd.Facts | None
    rancher: rancher.Facts | None
    crio: crio.Facts | None
    docker: docker.Facts | None
    xpu: xpu.Facts
    agent: agent.Facts
    images: t.Mapping[str, str]
    owners: owners.Facts
    transaction: t.Mapping[str, t.Any]


# -- observation -----------------------------------------------------------------------------


def choose_engine(host: Host, wanted: str) -> str:
    """The container engine that slices run on; a host with a kubelet uses CRI-O where that stands
    alone, Docker where cri-dockerd leads there, else containerd."""
    if wanted != "auto":
        return wanted
    if host.program(crio.PROGRAM) and not host.program(containerd.PROGRAM):
        return "crio"
    has_docker = any(host.program(program) for program in docker.PROGRAMS)
    if not has_docker:
        return "containerd"
    if not host.exists("/var/lib/kubelet"):
        return "docker"
    return "cri-dockerd" if docker.has_cri_dockerd(host) else "containerd"


def _observe_docker(host: Host, engine: str) -> docker.Facts | None:
    if engine not in ("docker", "cri-dockerd"):
        return None
    return docker.observe(host, serves_kubelet=engine == "cri-dockerd")


def observe_host(host: Host, desired: t.Mapping[str, t.Any]) -> HostFacts:
    """What every user may see."""
    system, release = system_of(host)
    kernel = os.uname()
    return HostFacts(
        system=system,
        release=release,
        architecture=kernel.machine,
        kernel=kernel.release,
        euid=os.geteuid(),
        free_mib=host.free_bytes("/var/cache") >> 20,
        engine=choose_engine(host, desired["container_runtime"]["engine"]),
    )


def observe(host: Host, desired: t.Mapping[str, t.Any]) -> Facts:
    facts = observe_host(host, desired)
    engine, dpkg_status = facts.engine, host.read(packages.DPKG_STATUS) or ""
    driver_wanted = driver.Wanted(**desired["nvidia_driver"])
    installed = packages.observe(host, dpkg_status)
    cuda_wanted = wanted_cuda(desired)
    managed = wanted_engine(desired).install
    return Facts(
        host=facts,
        driver=driver.observe(host, installed, driver_wanted, facts.system),
        cuda=cuda.observe(host, installed, cuda_wanted) if cuda_wanted else None,
        engine=engines.observe(host, engine, facts.system) if managed else None,
        toolkit=toolkit.observe(host, installed),
        containerd=containerd.observe(host) if engine == "containerd" else None,
        rancher=rancher.observe(host) if engine == "containerd" else None,
        crio=crio.observe(host) if engine == "crio" else None,
        docker=_observe_docker(host, engine),
        xpu=xpu.observe(host, wanted_release(desired, facts.architecture)),
        agent=agent.observe(host),
        images=images.observe(host, wanted_images(desired, engine), engine),
        owners=owners.observe(host),
        transaction=records.read(host, transaction.RECORD),
    )


# -- what is wanted of this host ---------------------------------------------------------------


def components_of(desired: t.Mapping[str, t.Any]) -> list[str]:
    """The components that a run is about, in order of installation; all unless it names some. CUDA
    toolkit and container engine are components where the site wants them to be."""
    named = desired.get("components") or COMPONENTS
    unasked = set() if wanted_cuda(desired) else {cuda.COMPONENT}
    unasked |= set() if wanted_engine(desired).install else {engines.COMPONENT}
    return [name for name in COMPONENTS if name in named and name not in unasked]


def wanted_engine(desired: t.Mapping[str, t.Any]) -> engines.Wanted:
    said = desired.get("container_engine", {})
    return engines.Wanted(**{**said, "packages": tuple(said.get("packages", ()))})


def wanted_cuda(desired: t.Mapping[str, t.Any]) -> str:
    """The version of the CUDA toolkit; empty where none is wanted."""
    return str(desired.get("cuda_toolkit", {}).get("version", ""))


def wanted_release(desired: t.Mapping[str, t.Any], architecture: str) -> str:
    """Directory name of the wanted xpu runtime; empty where the manifest has none for this host."""
    releases: t.Mapping[str, str] = desired["xpu_runtime"]["releases"]
    return releases.get(architecture) or releases.get("noarch") or ""


def wanted_agent(desired: t.Mapping[str, t.Any], facts: HostFacts) -> str:
    """Release of the agent for slices outside a cluster; empty where the host shall have none."""
    asked = desired["xpu_agent"]
    releases: t.Mapping[str, str] = asked["releases"]
    if not agent.is_wanted(asked["state"], facts.engine, facts.architecture in releases):
        return ""
    # Of one that is asked for and isn't in the manifest, the plan says so by its architectures.
    return releases.get(facts.architecture) or str(asked["version"] or "of any version")


def wanted_images(desired: t.Mapping[str, t.Any], engine: str) -> t.Mapping[str, str]:
    """Images go to hosts of the cluster; what a Docker-only host runs is its owner's choice."""
    wanted: t.Mapping[str, str] = desired.get("images") or {}
    return wanted if engine in ("containerd", "cri-dockerd") else {}


# -- plan ------------------------------------------------------------------------------------


def not_root(facts: HostFacts) -> list[Decision]:
    """The whole plan of a host where we may not even read all that a plan follows from."""
    if facts.euid == 0:
        return []
    reason = f"not root (effective uid {facts.euid}); set become: true, or connect as root"
    return [Decision("host", BLOCKED, "", "", reason)]


def _host_obstacle(facts: HostFacts, changing: bool, min_free_mib: int) -> str:
    releases = {facts.release, facts.release.partition(".")[0]}
    if not any((facts.system, release) in SYSTEMS for release in releases):
        known = ", ".join(f"{system} {release}" for system, release in sorted(SYSTEMS))
        found = f"{facts.system or 'unknown'} {facts.release}".strip()
        return f"system {found} is not supported; supported are {known}"
    if changing and facts.free_mib < min_free_mib:
        return (
            f"{facts.free_mib} MiB free under /var/cache, {min_free_mib} MiB needed; free some, "
            "or lower preflight_min_free_mib"
        )
    return ""


def _without_artefact(decision: Decision, facts: Facts, desired: t.Mapping[str, t.Any]) -> Decision:
    """A change that lacks its artefact for this architecture is no plan."""
    key, architecture = decision.component, facts.host.architecture
    artefact = ARTEFACT_OF.get(key)
    if desired.get(key, {}).get("method") == "packages":
        return decision  # from the host's repositories
    if key == toolkit.COMPONENT and facts.toolkit.manager == "rpm":
        key = artefact = toolkit.ARTEFACTS["rpm"]
    there = desired["architectures"].get(key, [])
    if not artefact or decision.action not in (INSTALL, CHANGE):
        return decision
    if architecture in there or "noarch" in there:
        return decision
    return decision._replace(
        action=BLOCKED,
        reason=f"the manifest has {artefact} {decision.wanted} for {', '.join(there) or 'no'} "
        f"architecture, not for {architecture}; add it",
    )


def _runtime(facts: Facts, trace: Claim | None) -> Decision:
    if facts.docker is not None:
        return docker.plan(facts.docker, trace)
    if facts.crio is not None:
        return crio.plan(facts.crio, trace)
    if facts.rancher is not None:
        return rancher.plan(facts.rancher)
    if facts.containerd is None:  # observe() fills the one that the engine names
        raise AssertionError("no engine was observed")
    return containerd.plan(facts.containerd, trace)


def _with_engine(facts: Facts) -> Facts:
    """As the host will be when its engine is installed."""
    return facts._replace(
        containerd=facts.containerd and facts.containerd._replace(installed=True),
        crio=facts.crio and facts.crio._replace(installed=True),
        docker=facts.docker and facts.docker._replace(installed=True),
    )


def plan(facts: Facts, desired: t.Mapping[str, t.Any]) -> list[Decision]:
    """Per component, in order of installation, what to do; obstacles of the host itself first."""
    driver_wanted = driver.Wanted(**desired["nvidia_driver"])
    toolkit_wanted = toolkit.Wanted(**desired["container_toolkit"])
    basis = toolkit.CdiBasis(driver_wanted.version, toolkit_wanted.version, facts.driver.cards)
    arch = facts.host.architecture
    trace = {component: owners.claim(facts.owners, component) for component in COMPONENTS}
    decisions = [driver.plan(facts.driver, driver_wanted, trace["nvidia_driver"])]
    if facts.cuda is not None:
        decisions.append(cuda.plan(facts.cuda, wanted_cuda(desired)))
    if facts.engine is not None:
        decisions.append(engines.plan(facts.engine, wanted_engine(desired)))
        if decisions[-1].action == INSTALL:
            facts = _with_engine(facts)
    decisions += [
        toolkit.plan(facts.toolkit, toolkit_wanted, basis, trace["container_toolkit"]),
        _runtime(facts, trace["container_runtime"]),
        xpu.plan(facts.xpu, wanted_release(desired, arch)),
        agent.plan(facts.agent, wanted_agent(desired, facts.host)),
        images.plan(facts.images, wanted_images(desired, facts.host.engine)),
    ]
    asked = components_of(desired)
    decisions = [
        _without_artefact(decision, facts, desired)
        for decision in decisions
        if decision.component in asked
    ]
    decisions += owners.plan_ports(facts.owners)
    driving = any(
        decision.component == driver.COMPONENT and decision.action in (INSTALL, CHANGE)
        for decision in decisions
    )
    why = transaction.why_quiet(facts.driver, driver_wanted) if driving else ""
    decisions = transaction.plan(facts.transaction, why) + decisions
    changing = any(decision.action != OK for decision in decisions)
    obstacle = _host_obstacle(facts.host, changing, int(desired["min_free_mib"]))
    if obstacle:
        decisions.insert(0, Decision("host", BLOCKED, "", "", obstacle))
    return decisions


def _wanted_engine(facts: HostFacts, desired: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    asked = wanted_engine(desired)
    if not asked.install:
        return {}
    return {"container_engine": {"name": facts.engine, "since": engines.since(asked, facts.engine)}}


def wanted(facts: HostFacts, desired: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What the verdict shall ask for, told in the terms of the tools that it asks."""
    wanted_toolkit = wanted_cuda(desired)
    return {
        "nvidia_driver": desired["nvidia_driver"]["version"],
        **({"cuda_toolkit": wanted_toolkit} if wanted_toolkit else {}),
        **_wanted_engine(facts, desired),
        "container_toolkit": desired["container_toolkit"]["version"],
        "accept_envvar_unprivileged": desired["container_toolkit"]["accept_envvar_unprivileged"],
        "container_runtime": facts.engine,
        "xpu_runtime": wanted_release(desired, facts.architecture),
        "xpu_agent": wanted_agent(desired, facts),
        "images": dict(wanted_images(desired, facts.engine)),
    }
