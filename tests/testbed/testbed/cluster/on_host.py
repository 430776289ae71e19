# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: files, links, images and units as the order on stdin says; only what differs.

Sent over by ``cluster`` and run by the host's own Python, so only the standard library is there.
Prints ``{"changed": [...]}``. Killed half-way, the next run finishes: a unit is restarted when a
file it reads is newer than its start, not because this very run wrote the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# What was last written to files that belong to the administrator once they exist.
RECORD = Path("/var/lib/testbed/written.json")


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)} exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.testbed")
    scratch.touch(mode=0o600)
    scratch.write_bytes(data)
    scratch.chmod(mode)
    scratch.rename(path)


def same(path: Path, data: bytes, mode: int) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    return path.stat().st_mode & 0o7777 == mode and path.read_bytes() == data


def read_record() -> dict[str, str]:
    try:
        return dict(json.loads(RECORD.read_text()))
    except (OSError, ValueError):
        return {}


def put_files(files: dict[str, dict[str, Any]]) -> list[str]:
    changed = []
    record = read_record()
    for name, spec in sorted(files.items()):
        path, data, mode = Path(name), base64.b64decode(spec["data"]), spec["mode"]
        digest = hashlib.sha256(data).hexdigest()
        # keep: an edit made on the host stands until the order itself says something new.
        settled = path.exists() and record.get(name) == digest if spec["keep"] else False
        if settled or same(path, data, mode):
            record[name] = digest
            continue
        write(path, data, mode)
        record[name] = digest
        changed.append(name)
    if record != read_record():
        write(RECORD, json.dumps(record, indent=1).encode(), 0o644)
    return changed


def put_links(links: dict[str, str]) -> list[str]:
    changed = []
    for name, target in sorted(links.items()):
        path = Path(name)
        if path.is_symlink() and os.readlink(path) == target:
            continue
        scratch = path.with_name(f".{path.name}.testbed")
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(target)
        scratch.rename(path)
        changed.append(name)
    return changed


def unit_state(name: str) -> dict[str, str]:
    shown = run(
        "systemctl", "show", name, "--timestamp=us+utc",
        "--property=ActiveState,UnitFileState,InactiveExitTimestamp",
    )  # fmt: skip
    return dict(line.split("=", 1) for line in shown.splitlines())


def started_at(state: dict[str, str]) -> float:
    """When a unit was last started, as the wall clock said then.

    File times come from the same clock. A start reckoned back from the monotonic clock moves when
    the wall clock is set, and units would be restarted for files they have read.
    """
    _, _, shown = state.get("InactiveExitTimestamp", "").partition(" ")
    if not shown:
        return 0.0
    return datetime.strptime(shown, "%Y-%m-%d %H:%M:%S.%f %Z").replace(tzinfo=UTC).timestamp()


def must_restart(state: dict[str, str], files: list[str]) -> bool:
    if state.get("ActiveState") not in {"active", "activating"}:
        return True
    changed_at = [os.lstat(name).st_ctime for name in files if os.path.lexists(name)]
    return any(when > started_at(state) for when in changed_at)


def put_units(units: list[dict[str, Any]], *, wait: bool) -> list[str]:
    """Restart what must; with *wait* until it is up (a unit of type notify says so itself)."""
    states = {unit["name"]: unit_state(unit["name"]) for unit in units}
    off = [name for name, state in states.items() if state.get("UnitFileState") != "enabled"]
    if off:
        run("systemctl", "enable", "--quiet", *off)
    stale = [unit["name"] for unit in units if must_restart(states[unit["name"]], unit["files"])]
    if stale:
        run("systemctl", "restart", *([] if wait else ["--no-block"]), *stale)
    return stale


def load_into_docker(image: dict[str, str]) -> list[str]:
    # Docker knows an image by its configuration, so which archive it came from is written down.
    record, key = read_record(), f"docker {image['name']}"
    listed = run("docker", "image", "ls", "--quiet", image["name"]).strip()
    if listed and record.get(key) == image["digest"]:
        return []
    run("docker", "load", "--input", image["archive"])
    write(RECORD, json.dumps({**record, key: image["digest"]}, indent=1).encode(), 0o644)
    return [image["name"]]


def put_images(images: list[dict[str, str]]) -> list[str]:
    changed = []
    for image in images:
        if image["engine"] == "docker":
            changed += load_into_docker(image)
            continue
        ctr = ("ctr", "--namespace", "k8s.io", "images")
        if image["digest"] in run(*ctr, "list", f"name=={image['name']}"):
            continue
        run(*ctr, "import", image["archive"])
        changed.append(image["name"])
    return changed


def main() -> None:
    order = json.load(sys.stdin)
    changed = put_files(order["files"]) + put_links(order["links"])
    if any(name.startswith("/etc/systemd/") for name in changed):
        run("systemctl", "daemon-reload")
    changed += put_units(order["first_units"], wait=True)
    changed += put_images(order["images"])
    changed += put_units(order["units"], wait=False)
    print(json.dumps({"changed": changed}))


if __name__ == "__main__":
    main()
