# SPDX-License-Identifier: GPL-3.0-or-later
"""What a topology becomes on a machine: addresses, cards, container flags, first files. Pure."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import TestbedError
from .hosts import Card, Host, Testbed
from .podman import LABEL, LABEL_DEFINITION, LABEL_HOST
from .topology import CLASSES, PROFILES, SWITCHES, HostSpec, Topology

# Ours alone; a UUID made from it can't meet a real card's.
NAMESPACE = uuid.UUID("6d0d4c0e-4d0b-5e0c-9f0a-7f1e5a1b2c3d")
FIRST_ADDRESS = 10
# Where a topology without a subnet looks for a free one.
POOL = ipaddress.IPv4Network("10.89.128.0/17")
INIT = "/usr/sbin/flexai-testbed-init"
# Debian 12's 4.3 accepts it, Ubuntu 24.04's 4.9 refuses.
REFUSES_SYSTEMD_ON_V1 = (4, 4)
UNITS_FILE = "/etc/flexai-testbed/units"
# Packages enable these by themselves; which of them a host runs is decided by its roles.
SWITCHED_UNITS = ("containerd.service", "docker.service", "docker.socket", "etcd.service")
UNITS_BY_ROLE = {
    "control-plane": ("containerd.service",),
    "worker": ("containerd.service",),
    "docker": ("containerd.service", "docker.service", "docker.socket"),
    "cri-dockerd": ("containerd.service", "docker.service", "docker.socket"),
    "containerd-2": ("containerd.service",),
}


def card_uuid(testbed: str, host: str, index: int, vendor: str = "0x10de") -> str:
    """The same card has the same UUID whenever its testbed is made again; an NPU has a die id."""
    number = uuid.uuid5(NAMESPACE, f"{testbed}/{host}/{index}")
    if vendor != "0x19e5":
        return f"GPU-{number}"
    words = f"{number.hex.upper()}{index:08X}"
    return "-".join(words[at : at + 8] for at in range(0, 40, 8))


def _cards(testbed: str, spec: HostSpec) -> tuple[Card, ...]:
    if not spec.cards:
        return ()
    return tuple(
        Card(
            profile=spec.cards.profile,
            uuid=card_uuid(testbed, spec.name, index, PROFILES[spec.cards.profile][0]),
            serial=hashlib.sha256(f"{testbed}/{spec.name}/{index}".encode()).hexdigest()[:12],
            pci_address=f"0000:{0x3B + index:02x}:00.0",
            numa_node=0 if index < (spec.cards.count + 1) // 2 else 1,
        )
        for index in range(spec.cards.count)
    )


def mac_address(testbed: str, host: str) -> str:
    """A host's locally administered MAC address, the same after every reboot.

    podman gives a new one at each start; machine and peers then talk to the old one from their
    neighbour tables, and a rebooted host is out of reach for a minute.
    """
    digest = hashlib.sha256(f"{testbed}/{host}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def choose_subnet(wanted: str | None, taken: Sequence[tuple[str, str]]) -> str:
    """*wanted*, or the first free /24 of POOL; *taken* are ``(network, who has it)``."""
    used = [(ipaddress.IPv4Network(network, strict=False), owner) for network, owner in taken]
    free = next(
        (
            str(candidate)
            for candidate in POOL.subnets(new_prefix=24)
            if not any(candidate.overlaps(network) for network, _ in used)
        ),
        None,
    )
    if wanted is None:
        if free is None:
            raise TestbedError(f"no free /24 in {POOL}", "give one with --subnet")
        return free
    for network, owner in used:
        if ipaddress.IPv4Network(wanted).overlaps(network):
            raise TestbedError(
                f"subnet {wanted} is already taken by {owner} ({network})",
                f"--subnet {free} is free (make demo SUBNET={free})"
                if free
                else f"give a free one with --subnet; {POOL} has none",
            )
    return wanted


def network_name(testbed: str, mark: str) -> str:
    """A podman network no testbed had before: *mark* is six hex digits, new with every ``up``.

    podman's list of leases goes by network name and outlives the network. An address that a killed
    podman left taken there would stay taken for every later testbed of that name.
    """
    return f"{testbed}-{mark}"


def is_network_of(testbed: str, network: str) -> bool:
    """Whether a network's name is one that :func:`network_name` gives the testbed's."""
    return re.fullmatch(re.escape(testbed) + "-[0-9a-f]{6}", network) is not None


def make_testbed(
    topology: Topology, name: str, subnet: str, state_dir: Path, mark: str = "000000"
) -> Testbed:
    """The testbed *topology* describes, with every name, address and card settled."""
    first = ipaddress.IPv4Network(subnet).network_address + FIRST_ADDRESS
    hosts = tuple(
        Host(
            name=spec.name,
            container=f"{name}-{spec.name}",
            address=str(first + index),
            os=spec.os,
            roles=spec.roles,
            cards=_cards(name, spec),
            directory=state_dir / "hosts" / spec.name,
            switches=spec.cards.switches if spec.cards else 0,
        )
        for index, spec in enumerate(topology.hosts)
    )
    network = network_name(name, mark)
    return Testbed(name, topology, network, subnet, hosts, None, state_dir)


def cgroup_parent(testbed: str, manager: str) -> str:
    """One cgroup above all of a testbed's hosts. systemd nests slices at each dash."""
    name = f"flexai_testbed_{testbed.replace('-', '_')}"
    return f"{name}.slice" if manager == "systemd" else f"/{name}"


@dataclass(frozen=True)
class Volume:
    """A directory of the machine on a host."""

    source: Path
    target: str
    options: str = "rw"


def volumes(host: Host) -> tuple[Volume, ...]:
    # /var/lib: containerd and Docker need a real file system, overlay on overlay is refused.
    # pci: hides the machine's own devices too, so a host without cards sees none.
    return (
        Volume(host.directory / "var-lib", "/var/lib"),
        Volume(host.directory / "pci", "/sys/bus/pci/devices", "ro"),
    )


def systemd_flags(podman: str, cgroups: str) -> tuple[str, ...]:
    """How podman is told that a host runs systemd; *cgroups* is ``v1`` or ``v2``.

    Later podmans refuse their own switch for it on cgroup v1 together with a cgroup namespace,
    which hosts need. What the switch does is then said in single flags.
    """
    major, minor = (int(part) for part in podman.split(".")[:2])
    if cgroups != "v1" or (major, minor) < REFUSES_SYSTEMD_ON_V1:
        return ("--systemd=always",)
    return (
        "--systemd=false",
        "--env=container=podman",
        "--stop-signal=SIGRTMIN+3",
        "--tmpfs=/run:rw,nosuid,nodev,mode=755",
        "--tmpfs=/run/lock:rw,nosuid,nodev,mode=1777",
        "--tmpfs=/tmp:rw,nosuid,nodev,mode=1777",
    )


def create_flags(
    testbed: Testbed,
    host: Host,
    image: str,
    manager: str,
    systemd: Sequence[str] = ("--systemd=always",),
) -> list[str]:
    """``podman create`` for one host, without the label that identifies this very list."""
    flags = [
        f"--name={host.container}",
        f"--hostname={host.name}",
        f"--label={LABEL}={testbed.name}",
        f"--label={LABEL_HOST}={host.name}",
        "--privileged",
        # Without a cgroup namespace nested containers fail with "error mounting cgroup".
        "--cgroupns=private",
        f"--cgroup-parent={cgroup_parent(testbed.name, manager)}",
        *systemd,
        # podman's own defaults are above what a machine without CAP_SYS_RESOURCE may set.
        "--ulimit=nofile=20000:20000",
        "--ulimit=nproc=4096:4096",
        # Its default of 2048 is too little for a Kubernetes node.
        "--pids-limit=-1",
        f"--network={testbed.network}",
        f"--ip={host.address}",
        f"--mac-address={mac_address(testbed.name, host.name)}",
        f"--env=FLEXAI_TESTBED_HOST={host.container}",
        f"--pidfile={host.directory / 'pid'}",
        "--stop-timeout=20",
        "--restart=always",
    ]
    flags += [f"--add-host={other.name}:{other.address}" for other in testbed.hosts]
    flags += [f"--volume={item.source}:{item.target}:{item.options}" for item in volumes(host)]
    return [*flags, image, INIT]


def definition(flags: Iterable[str]) -> str:
    """Digest of a container's flags: a container with another one is from another program."""
    return hashlib.sha256(json.dumps(list(flags)).encode()).hexdigest()[:16]


def labelled(flags: list[str]) -> list[str]:
    """*flags* with the label that tells a later ``up`` what they were."""
    return [f"--label={LABEL_DEFINITION}={definition(flags)}", *flags]


def pci_files(cards: Sequence[Card], switches: int = 0) -> dict[str, str]:
    """The directory over ``/sys/bus/pci/devices`` (docs/interfaces.md §8). An NVSwitch is a bridge
    of NVIDIA's; nothing is simulated of it but that it can be found."""
    files: dict[str, str] = {}
    for number in range(switches):
        bridge = f"0000:{0xC1 + number:02x}:00.0"
        files |= {
            f"{bridge}/vendor": "0x10de\n",
            f"{bridge}/device": f"{SWITCHES[cards[0].profile]}\n",
            f"{bridge}/class": "0x068000\n",
            f"{bridge}/numa_node": "0\n",
        }
    for card in cards:
        vendor, device = PROFILES[card.profile]
        simulated = f"profile {card.profile}\nuuid {card.uuid}\nserial {card.serial}\n"
        for name, text in {
            "vendor": f"{vendor}\n",
            "device": f"{device}\n",
            "class": f"{CLASSES[vendor]}\n",
            "numa_node": f"{card.numa_node}\n",
            "simgpu": simulated,
        }.items():
            files[f"{card.pci_address}/{name}"] = text
    return files


def units(roles: Iterable[str]) -> tuple[str, ...]:
    """Which of SWITCHED_UNITS a host with *roles* runs."""
    wanted = {unit for role in roles for unit in UNITS_BY_ROLE[role]}
    return tuple(unit for unit in SWITCHED_UNITS if unit in wanted)


# A container's first process ignores SIGTERM unless it asked for it, so with systemd's 90 s a host
# that runs any would not reboot before podman loses patience and kills it.
SYSTEMD_CONFIGURATION = """\
[Manager]
DefaultTimeoutStopSec=3s
"""

INIT_SCRIPT = f"""\
#!/bin/sh
# First process of a testbed host, before systemd: what a machine gets from firmware and kernel.
set -eu
# Podman starts a host again whenever this ends; a mistake here must not become a busy loop.
trap 'echo "flexai-testbed-init failed" >&2; sleep 2' EXIT
# Containers share the machine's boot id; a host that reboots needs one of its own.
mkdir -p /run/flexai-testbed
cat /proc/sys/kernel/random/uuid > /run/flexai-testbed/boot_id
mount --bind /run/flexai-testbed/boot_id /proc/sys/kernel/random/boot_id
# On cgroup v1 podman binds the machine's whole name=systemd hierarchy over the one that runc made
# for our cgroup namespace: every host's systemd would put its slices at the machine's root, shared
# with all others, and a host that reboots would take their services along. Take that cover off.
if [ "$(grep -c ' /sys/fs/cgroup/systemd cgroup ' /proc/mounts)" -gt 1 ]; then
    umount --recursive /sys/fs/cgroup/systemd
fi
# Stand-in for an installed kernel with headers: enough to be found, nothing to compile against.
release=$(uname -r)
if [ ! -e "/usr/lib/modules/$release" ]; then
    mkdir -p "/usr/lib/modules/$release" "/usr/src/linux-headers-$release"
    echo '# testbed stand-in for kernel headers; nothing can be built with it' \\
        > "/usr/src/linux-headers-$release/Makefile"
    ln -s "/usr/src/linux-headers-$release" "/usr/lib/modules/$release/build"
    : > "/usr/lib/modules/$release/modules.builtin"
    : > "/usr/lib/modules/$release/modules.order"
fi
# And for what builds modules: looked for before a driver is installed, and never run here.
for tool in gcc make; do
    command -v "$tool" > /dev/null && continue
    {{
        echo '#!/bin/sh'
        echo 'echo "testbed stand-in for a compiler: it builds nothing" >&2; exit 1'
    }} > "/usr/local/bin/$tool"
    chmod 755 "/usr/local/bin/$tool"
done
# First boot only: what an administrator disables later stays disabled.
if [ -e {UNITS_FILE} ]; then
    for unit in {" ".join(SWITCHED_UNITS)}; do
        [ ! -e "/usr/lib/systemd/system/$unit" ] || systemctl --root=/ --quiet disable "$unit"
    done
    while read -r unit; do
        systemctl --root=/ --quiet enable "$unit"
    done < {UNITS_FILE}
    rm {UNITS_FILE}
fi
exec /sbin/init
"""


def first_files(testbed: Testbed, host: Host, keys: dict[str, bytes]) -> bytes:
    """A tar archive laid over a host's image before its first boot.

    *keys*: ``authorized`` (the testbed's public key), ``host`` and ``host.pub`` (the SSH server's).
    """
    machine_id = uuid.uuid5(NAMESPACE, f"{testbed.name}/{host.name}").hex
    members: list[tuple[str, bytes, int]] = [
        (INIT, INIT_SCRIPT.encode(), 0o755),
        (UNITS_FILE, "".join(f"{unit}\n" for unit in units(host.roles)).encode(), 0o644),
        ("/etc/machine-id", f"{machine_id}\n".encode(), 0o444),
        ("/etc/hostname", f"{host.name}\n".encode(), 0o644),
        ("/etc/systemd/system.conf.d/testbed.conf", SYSTEMD_CONFIGURATION.encode(), 0o644),
        ("/root/.ssh/authorized_keys", keys["authorized"], 0o600),
        ("/etc/ssh/ssh_host_ed25519_key", keys["host"], 0o600),
        ("/etc/ssh/ssh_host_ed25519_key.pub", keys["host.pub"], 0o644),
    ]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for directory, mode in (("root/.ssh", 0o700), ("etc/flexai-testbed", 0o755)):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for path, content, mode in members:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
