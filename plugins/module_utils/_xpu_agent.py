# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The program that registers slices on a host without Kubernetes, and its unit.

One file, replaced by one rename: a unit that runs keeps the old one until it is restarted.
"""

from __future__ import annotations

import typing as t

from . import _records as records
from ._decision import CHANGE, INSTALL, OK, REFUSE, REMOVE, Claim, Decision
from ._host import Host
from ._xpu_runtime import release_name

COMPONENT = "xpu_agent"
ARTEFACT = "xpu-agent"
# Where an operator's shell finds it; the device plugin of a cluster runs from its image.
PROGRAM = "/usr/local/bin/gpu-device-plugin"
UNIT = "xpu-agent.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
WANTED_BY = f"/etc/systemd/system/multi-user.target.wants/{UNIT}"
# systemd keeps this link while a unit runs.
RUNS = f"/run/systemd/units/invocation:{UNIT}"
STATES = ("auto", "present", "absent")

# What it needs: root's reading of every process (mounts, record locks, cgroups), the right to kill
# a tenant's process (--on-misuse kill), NVML's devices and persistence socket, two directories
# in which others make and remove /etc/cdi while it runs, and that of pods' slices, which it looks
# after where a device plugin runs beside it; its end is not theirs. No network, no kernel
# settings, nobody's home. Left out: MemoryDenyWriteExecute, since the driver's library is loaded
# into it, and ProtectClock and PrivateDevices, which would keep it from the cards. The driver
# lets nobody without CAP_SYS_ADMIN see the processes of others.
UNIT_TEXT = f"""\
# Written by flexai.xpu, role xpu_agent; changes are lost. Put yours into {UNIT}.d/.
[Unit]
Description=Slices of GPUs on a host without Kubernetes
Documentation=https://github.com/flexai-xpu/flexai.xpu
After=nvidia-persistenced.service
# Containers of those start with CDI entries that are true to this boot.
Before=docker.service podman.service podman-restart.service

[Service]
Type=notify
ExecStart={PROGRAM} agent
Restart=always
RestartSec=2s
UMask=0022
NoNewPrivileges=true
CapabilityBoundingSet=CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_KILL CAP_SYS_ADMIN
ProtectSystem=strict
ReadWritePaths=/etc
StateDirectory=xpu
RuntimeDirectory=xpu
RuntimeDirectoryPreserve=yes
ProtectHome=true
PrivateTmp=true
ProtectKernelTunables=true
ProtectKernelModules=true
ProtectKernelLogs=true
ProtectControlGroups=true
ProtectHostname=true
RestrictAddressFamilies=AF_UNIX
IPAddressDeny=any
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
SystemCallArchitectures=native
# Nobody's container waits for this to end.
TimeoutStopSec=10s

[Install]
WantedBy=multi-user.target
"""


class Facts(t.NamedTuple):
    digest: str
    unit: str | None
    enabled: bool
    runs: bool
    record: t.Mapping[str, t.Any]


def observe(host: Host) -> Facts:
    return Facts(
        digest=host.digest(PROGRAM),
        unit=host.read(UNIT_FILE),
        enabled=bool(host.link(WANTED_BY)),
        # Elsewhere than on a running system there are no services.
        runs=not host.is_real or bool(host.link(RUNS)),
        record=records.read(host, COMPONENT),
    )


def is_wanted(state: str, engine: str, available: bool) -> bool:
    """Whether a host shall have it; left to us, where Docker runs containers and no kubelet."""
    return state == "present" or (state == "auto" and engine == "docker" and available)


def found_release(facts: Facts) -> str:
    """As the record names it; a program that isn't the recorded one is altered."""
    if not facts.digest or not facts.record:
        return ""
    return release_name(str(facts.record.get("version", "")), facts.digest)


def differences(facts: Facts, wanted: str) -> list[str]:
    found = found_release(facts)
    told = []
    if found != wanted:
        told.append(f"{PROGRAM}: {found or 'absent'} → {wanted}")
    if facts.unit != UNIT_TEXT:
        told.append(f"{UNIT_FILE} {'differs' if facts.unit is not None else 'is absent'}")
    if not facts.enabled:
        told.append(f"{UNIT} is not enabled")
    if not facts.runs:
        told.append(f"{UNIT} does not run")
    return told


def plan(facts: Facts, wanted: str) -> Decision:
    """*wanted* is a release, or empty where the host shall have none."""
    found = found_release(facts)
    if facts.digest and not facts.record:
        if not wanted:
            return Decision(COMPONENT, OK, "", "")
        reason = f"{PROGRAM}: not installed by us; move it away"
        return Claim(REFUSE, "another installation", reason).refusal(COMPONENT, wanted, "")
    if not wanted:
        if facts.record:
            reason = "slices of this host are the device plugin's now"
            return Decision(COMPONENT, REMOVE, "", found, reason)
        return Decision(COMPONENT, OK, "", "")
    told = differences(facts, wanted)
    if not told:
        return Decision(COMPONENT, OK, wanted, found)
    return Decision(COMPONENT, CHANGE if facts.record else INSTALL, wanted, found, "; ".join(told))
