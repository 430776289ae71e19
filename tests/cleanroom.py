# SPDX-License-Identifier: GPL-3.0-or-later
"""``make clean-room``: the README's promise, kept on a system that has nothing of ours.

A root directory of a supported system with only git, make and Python (debootstrap), a clone of the
committed state in it, and a command run there as root, by default the README's own two. What it
builds goes to a cache of the room's own (cold), or to this machine's (``--caches machine``). The
room has a network of its own behind this machine's, so that testbeds inside and outside can't meet.

Needs root on Debian or Ubuntu. Leaves the room's directory for a look, unless ``--remove``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from xpubuild import debian
from xpubuild.cache import Cache, default_root
from xpubuild.toolchain import REPOSITORY, ToolchainError, run

PACKAGES = ("git", "make", "python3", "ca-certificates")
ROOMS = Path("/var/lib/flexai-cleanroom")
CHECKOUT = "/root/flexai.xpu"
# How this machine reaches the package registries; a user's machine has its own way.
NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
REGISTRIES = ("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE", "GOPROXY", "GONOSUMDB", "GOSUMDB") + (
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
NETNS = "flexai-cleanroom"
# Link-local: whatever a testbed, the machine or its registries use, it isn't this.
INNER, OUTER, LINK = "169.254.93.2", "169.254.93.1", "169.254.93.0/30"
# Mount namespace of its own: what the room mounts ends with it. PID namespace: so do its processes.
# nsenter, since `ip netns exec` mounts a /sys without cgroups.
ENTER = (
    f"nsenter --net=/run/netns/{NETNS} "
    "setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --propagation private"
).split()
INSIDE = """\
set -eu
room=$1 checkout=$2; shift 2
mount --bind "$room" "$room"
mount -t proc proc "$room/proc"
mount --rbind /sys "$room/sys"
mount --rbind /dev "$room/dev"
mount -t tmpfs tmpfs "$room/run"
for pair in $CACHES; do
  mkdir -p "$room${pair#*:}"
  mount --bind "${pair%%:*}" "$room${pair#*:}"
done
# Not chroot: who enters a container's namespaces from there comes out at the machine's root.
mkdir "$room/.machine"
cd "$room"
pivot_root . .machine
umount --lazy /.machine
rmdir /.machine
exec env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 $PASSED \\
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
  sh -c "cd $checkout && $1"
"""


def sources(suite: str) -> str:
    """apt's list for *suite*, from the mirror this machine uses."""
    distribution = debian.SUITES[suite]
    components = debian.DISTRIBUTIONS[distribution].components.replace(",", " ")
    return f"deb {debian.mirror(distribution)} {suite} {components}\n"


def unpack(room: Path, suite: str) -> None:
    """A fresh room with the commit that HEAD names, as a user would clone it."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    archive = debian.rootfs(Cache(), suite, PACKAGES)
    run(["tar", "--extract", f"--file={archive}", f"--directory={room}", "--numeric-owner"])
    (room / "etc/apt/sources.list").write_text(sources(suite), encoding="utf-8")
    for name in filter(os.path.exists, NETWORK):
        target = room / name[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(name, target)
    run(["git", "clone", "--quiet", REPOSITORY, f"{room}{CHECKOUT}"])


def machine_caches() -> str:
    """Pairs ``from:to`` of the caches that this machine lends to the room."""
    modules = Path(os.environ.get("GOMODCACHE") or Path.home() / "go/pkg/mod")
    objects = Path(os.environ.get("GOCACHE") or Path.home() / ".cache/go-build")
    pairs = {
        default_root(): "/root/.cache/flexai-xpu",
        modules: "/root/go/pkg/mod",
        objects: "/root/.cache/go-build",
    }
    for directory in pairs:
        directory.mkdir(parents=True, exist_ok=True)
    return " ".join(f"{lent}:{inside}" for lent, inside in pairs.items())


def registries() -> str:
    """Words for ``env``: how this machine's registries are reached."""
    told = {name: os.environ[name] for name in REGISTRIES if name in os.environ}
    return " ".join(f"{name}={value}" for name, value in told.items())


NAT = ["POSTROUTING", "-s", LINK, "-j", "MASQUERADE"]


@contextlib.contextmanager
def network() -> Iterator[None]:
    """The room's network namespace, joined to this machine by a pair of interfaces and NAT."""
    remove_network()
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    for line in (
        f"ip netns add {NETNS}",
        f"ip link add cleanroom0 type veth peer name eth0 netns {NETNS}",
        f"ip address add {OUTER}/30 dev cleanroom0",
        "ip link set cleanroom0 up",
        f"ip -n {NETNS} address add {INNER}/30 dev eth0",
        f"ip -n {NETNS} link set lo up",
        f"ip -n {NETNS} link set eth0 mtu {_mtu()} up",
        f"ip -n {NETNS} route add default via {OUTER}",
    ):
        run(line.split())
    run(["iptables", "--wait", "-t", "nat", "-A", *NAT])
    forwarding.write_text("1")
    try:
        yield
    finally:
        forwarding.write_text(before)
        remove_network()


def remove_network() -> None:
    """Also what a killed run left. The interfaces go with the namespace."""
    for argv in (["ip", "netns", "del", NETNS], ["iptables", "--wait", "-t", "nat", "-D", *NAT]):
        subprocess.run(argv, stderr=subprocess.DEVNULL, check=False)


def _mtu() -> int:
    """That of the way out: a tunnel's is smaller than Ethernet's."""
    route = json.loads(run(["ip", "-json", "route", "get", "192.0.2.255"]))[0]
    return int(Path("/sys/class/net", route["dev"], "mtu").read_text())


@click.command()
@click.argument("command", default="make demo && make test && make demo-down")
@click.option("--suite", default="bookworm", type=click.Choice(sorted(debian.SUITES)))
@click.option("--caches", default="own", type=click.Choice(["own", "machine"]))
@click.option("--remove", is_flag=True, help="remove the room afterwards")
def main(command: str, suite: str, caches: str, remove: bool) -> None:
    """Run COMMAND on a clean system of SUITE; the exit code is its own."""
    room = ROOMS / suite
    try:
        unpack(room, suite)
    except ToolchainError as error:
        click.echo(f"clean-room: {error}", err=True)
        sys.exit(1)
    lent = machine_caches() if caches == "machine" else ""
    head = run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY).strip()
    click.echo(f"clean room: {suite}, commit {head}, {', '.join(PACKAGES)}; caches: {caches}")
    started = time.monotonic()
    with network():
        done = subprocess.run(
            [*ENTER, "sh", "-c", INSIDE, "room", str(room), CHECKOUT, command],
            env={**os.environ, "CACHES": lent, "PASSED": registries()},
            stdin=subprocess.DEVNULL,
            check=False,
        )
    minutes = (time.monotonic() - started) / 60
    click.echo(f"clean room: `{command}` exited {done.returncode} after {minutes:.1f} minutes")
    if remove:
        shutil.rmtree(room, ignore_errors=True)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
