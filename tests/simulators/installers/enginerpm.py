# SPDX-License-Identifier: GPL-3.0-or-later
"""containerd as an rpm: real programs, under the name that openEuler gives the package."""

from __future__ import annotations

from pathlib import Path

from . import rpm

UNIT = """\
[Unit]
Description=containerd container runtime
After=network.target local-fs.target

[Service]
ExecStart=/usr/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
LimitNOFILE=20000

[Install]
WantedBy=multi-user.target
"""
NAME = "containerd.service"


def package(programs: Path, version: str) -> rpm.Package:
    """containerd *version*, whose *programs* lie in a directory."""
    return rpm.Package(
        "containerd",
        "containerd container runtime",
        version,
        files={
            **{f"/usr/bin/{file.name}": (file.read_bytes(), 0o755) for file in programs.iterdir()},
            f"/usr/lib/systemd/system/{NAME}": (UNIT, 0o644),
        },
        empty=("/etc/containerd",),
        scripts={
            "post": "systemctl daemon-reload",
            "preun": f'[ "$1" -ne 0 ] || systemctl disable --now {NAME}',
            "postun": "systemctl daemon-reload",
        },
    )
