# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle is the manifest and all its artefacts, each the one that it says; a lock file knows the
digests that no manifest can."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.action import bundle
from ansible_collections.flexai.xpu.plugins.module_utils._artefacts import FIRST_USE, Artefact
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.plugin_utils import _lock as locks
from ansible_collections.flexai.xpu.plugins.plugin_utils._controller import load_artefacts

from . import hostroot
from .test_playbooks import Site, hosts, on_one_line, run, site, variables
from .test_url_artefact import CONTENT, SHA256, Server, server

__all__ = ["server", "site"]  # fixtures

DRIVER = "driver.run"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def names(directory: Path) -> set[str]:
    """Every file below a directory."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)) for path in found}


def change_entry(manifest: Path, number: int = 0, **changes: str) -> None:
    document = yaml.safe_load(manifest.read_text())
    document["artefacts"][number].update(changes)
    manifest.write_text(yaml.safe_dump(document))


def write(manifest: Path, dest: Path, check: bool = False, lock: str = "") -> dict[str, Any]:
    return bundle.write(str(manifest), str(dest), lock, check)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three artefacts as files, the driver the first."""
    return hostroot.manifest(tmp_path / "artefacts")


# -- writing ---------------------------------------------------------------------------------


def test_the_playbook_predicts_writes_and_is_silent_then(tmp_path: Path, site: Site) -> None:
    dest = tmp_path / "bundle"
    arguments = ("-e", f"flexai_bundle={dest}")
    predicted = run(tmp_path, site, "bundle", "--check", *arguments)
    assert "changed=1" in predicted.stdout, predicted.stdout
    assert not dest.exists()
    assert "changed=1" in run(tmp_path, site, "bundle", *arguments).stdout
    entries = yaml.safe_load((dest / "manifest.yml").read_text())["artefacts"]
    assert names(dest) == {"manifest.yml", *(f"{e['sha256']}/{e['file']}" for e in entries)}
    assert [e["source"] for e in entries] == [f"{e['sha256']}/{e['file']}" for e in entries]
    assert [e["origin"] for e in entries] == ["driver.run", "toolkit.tar.gz", "xpu.tar"]
    assert "changed=0" in run(tmp_path, site, "bundle", *arguments).stdout


def test_a_bundle_can_be_made_from_a_bundle(tmp_path: Path, manifest: Path) -> None:
    first = write(manifest, tmp_path / "one")["manifest"]
    second = write(Path(first), tmp_path / "two")["manifest"]
    assert Path(second).read_text() == Path(first).read_text()


def test_a_url_is_fetched_by_the_controller(
    tmp_path: Path, manifest: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    change_entry(manifest, source=f"{server.url}/xpu.tar", sha256=SHA256)
    done = write(manifest, tmp_path / "bundle")
    assert (tmp_path / "bundle" / SHA256 / DRIVER).read_bytes() == CONTENT
    assert load_artefacts(done["manifest"], "bundle")[1][0].origin == f"{server.url}/xpu.tar"


def test_what_broke_off_is_finished_without_writing_the_rest_again(
    tmp_path: Path, manifest: Path
) -> None:
    dest = tmp_path / "bundle"
    (manifest.parent / "xpu.tar").rename(tmp_path / "away")
    with pytest.raises(XpuError):
        write(manifest, dest)
    assert not (dest / "manifest.yml").exists()
    (tmp_path / "away").rename(manifest.parent / "xpu.tar")
    assert write(manifest, dest)["written"] == ["xpu.tar"]


WRONG = "correct the manifest only if you trust the file."
SPOILS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "altered": (
        lambda file: file.write_text("altered"),
        f"driver.run (from {{source}}) has SHA-256 {sha256('altered')}, the manifest says "
        f"{{sha256}}. Remedy: fetch it from its vendor again; {WRONG}",
    ),
    "truncated": (
        lambda file: file.write_text(file.read_text()[:-1]),
        f"driver.run (from {{source}}) has SHA-256 {sha256('#!/bin/sh')}, the manifest says "
        f"{{sha256}}. Remedy: fetch it from its vendor again; {WRONG}",
    ),
    "missing": (
        lambda file: file.unlink(),
        "{source} does not exist. Remedy: put the file there, or correct source in the manifest.",
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_file_that_is_not_the_one_never_gets_into_a_bundle(
    spoil: str, tmp_path: Path, manifest: Path
) -> None:
    action, text = SPOILS[spoil]
    file = manifest.parent / DRIVER
    wanted = sha256(file.read_text())
    action(file)
    with pytest.raises(XpuError) as error:
        write(manifest, tmp_path / "bundle")
    assert str(error.value) == text.format(source=file, sha256=wanted)
    assert names(tmp_path / "bundle") == set()


@pytest.mark.parametrize(
    ("name", "text"),
    [("short.tar", "broke off after 5000 of 10000 bytes"), ("gone.tar", "can't be fetched")],
)
def test_an_answer_that_is_none_never_gets_into_a_bundle(
    name: str,
    text: str,
    tmp_path: Path,
    manifest: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    change_entry(manifest, source=f"{server.url}/{name}", sha256=SHA256)
    with pytest.raises(XpuError, match=text):
        write(manifest, tmp_path / "bundle")
    assert names(tmp_path / "bundle") == set()


def test_a_bundle_without_a_directory_is_told(manifest: Path) -> None:
    with pytest.raises(XpuError, match=r"The bundle's directory \(flexai_bundle\) is not set"):
        bundle.write(str(manifest), "", "", False)


# -- using -----------------------------------------------------------------------------------


def file_of(directory: Path) -> Path:
    (found,) = directory.glob(f"*/{DRIVER}")
    return found


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda dest: file_of(dest).unlink(),
        "Artefact nvidia-driver: {file} is missing from the bundle; wanted is SHA-256 {sha256}. "
        "Remedy: write the bundle again with flexai.xpu.bundle",
    ),
    "altered": (
        lambda dest: file_of(dest).write_text("altered"),
        f"Artefact nvidia-driver: {{file}} has SHA-256 {sha256('altered')}, the manifest says "
        "{sha256}. Remedy: fetch it",
    ),
    "truncated": (
        lambda dest: file_of(dest).write_text("#!/bin/sh"),
        f"Artefact nvidia-driver: {{file}} has SHA-256 {sha256('#!/bin/sh')}, the manifest says "
        "{sha256}. Remedy: fetch it",
    ),
    "of another architecture": (
        lambda dest: change_entry(dest / "manifest.yml", arch="aarch64"),
        "gpu1: nvidia_driver is blocked: the manifest has nvidia-driver 580.95.05 for aarch64 "
        "architecture, not for x86_64; add it.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_bundle_is_one_error_before_any_host_is_changed(
    fault: str, tmp_path: Path, site: Site
) -> None:
    dest = tmp_path / "bundle"
    write(Path(variables(site)["flexai_manifest"]), dest)
    file = file_of(dest)
    spoil, text = FAULTS[fault]
    spoil(dest)
    variables(site).update(flexai_manifest=str(dest / "manifest.yml"), flexai_source="bundle")
    del hosts(site)["gpu2"]
    before = names(tmp_path / "gpu1")
    done = run(tmp_path, site, "site")
    assert done.returncode != 0, done.stdout
    wanted = text.format(file=file, sha256=sha256("#!/bin/sh\n"))
    assert on_one_line(wanted) in on_one_line(done.stdout)
    assert done.stdout.count("[ERROR]") + done.stderr.count("[ERROR]") == 1
    assert "PLAY [Change]" not in done.stdout
    assert names(tmp_path / "gpu1") == before


def test_with_source_bundle_nothing_is_fetched_from_a_url(manifest: Path) -> None:
    change_entry(manifest, source="https://example.org/driver.run")
    driver = load_artefacts(str(manifest), "bundle")[1][0]
    assert not driver.is_remote
    assert driver.source == f"{driver.sha256}/{DRIVER}"


# -- the lock file ---------------------------------------------------------------------------

CUDA = Artefact("cuda-toolkit", "12.2.2", "x86_64", "run", "cuda.run", "cuda.run", FIRST_USE)


def test_a_digest_is_found_once_recorded_and_kept(tmp_path: Path) -> None:
    lock = tmp_path / "site/lock.yml"
    pinned = locks.pinned(CUDA, str(lock), lambda: SHA256)
    assert (pinned.sha256, pinned.pinned_by) == (SHA256, str(lock))
    (entry,) = yaml.safe_load(lock.read_text())["artefacts"]
    assert entry == {
        "name": "cuda-toolkit",
        "version": "12.2.2",
        "arch": "x86_64",
        "file": "cuda.run",
        "source": "cuda.run",
        "sha256": SHA256,
    }
    assert locks.pinned(CUDA, str(lock), lambda: "another").sha256 == SHA256
    assert locks.applied([CUDA], locks.read(str(lock)), str(lock)) == [pinned]


def test_a_digest_of_the_manifest_goes_before_the_lock_file(tmp_path: Path) -> None:
    lock = tmp_path / "lock.yml"
    locks.pinned(CUDA, str(lock), lambda: SHA256)
    known = Artefact(**{**CUDA.as_dict(), "sha256": "0" * 64})
    assert locks.applied([known], locks.read(str(lock)), str(lock)) == [known]


def test_hosts_that_need_a_file_at_once_find_its_digest_once(tmp_path: Path) -> None:
    lock, found, start = str(tmp_path / "lock.yml"), [], threading.Barrier(8)

    def find() -> str:
        found.append(SHA256)
        return SHA256

    def use() -> None:
        start.wait()
        assert locks.pinned(CUDA, lock, find).sha256 == SHA256

    threads = [threading.Thread(target=use) for _number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SHA256]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "can't be read: while parsing"),
        ("version: 2", "is no lock file of version 1"),
        ("version: 1\nartefacts: [{name: x}]", "entry 1 lacks one of name, version, arch, sha256"),
    ],
    ids=["no YAML", "other version", "half an entry"],
)
def test_a_lock_file_that_is_none_is_told_and_never_written_over(
    content: str, text: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock.yml"
    lock.write_text(content)
    with pytest.raises(XpuError, match=text):
        locks.pinned(CUDA, str(lock), lambda: SHA256)
    assert lock.read_text() == content


@pytest.mark.parametrize("number", [1, 2], ids=["toolkit", "xpu-runtime"])
def test_first_use_is_for_vendors_files_alone(number: int, manifest: Path) -> None:
    change_entry(manifest, number, sha256=FIRST_USE)
    if number == 1:
        assert not load_artefacts(str(manifest))[1][1].is_pinned
        return
    with pytest.raises(XpuError, match="artefact xpu-runtime has sha256 first-use, which is for"):
        load_artefacts(str(manifest))


def test_a_bundle_holds_the_digests_of_the_lock_file(tmp_path: Path, manifest: Path) -> None:
    wanted = sha256((manifest.parent / DRIVER).read_text())
    change_entry(manifest, sha256=FIRST_USE)
    assert write(manifest, tmp_path / "bundle", check=True)["changed"]
    assert not (manifest.parent / "lock.yml").exists()
    done = write(manifest, tmp_path / "bundle")
    assert load_artefacts(done["manifest"], "bundle")[1][0].sha256 == wanted
    assert locks.read(str(manifest.parent / "lock.yml"))
    assert not write(manifest, tmp_path / "bundle")["changed"]

    (manifest.parent / DRIVER).write_text("another file of that name")
    with pytest.raises(XpuError) as error:
        write(manifest, tmp_path / "elsewhere")
    lock = manifest.parent / "lock.yml"
    assert f"{lock} says {wanted}. Remedy: fetch it from its vendor again; correct {lock}" in str(
        error.value
    )
    assert names(tmp_path / "elsewhere") == set()


def test_a_host_uses_a_file_of_unknown_digest_once_recorded_and_then_only_that_one(
    tmp_path: Path, site: Site
) -> None:
    """The whole way of module artefact: predicted, recorded, sent; another file is refused."""
    manifest = Path(variables(site)["flexai_manifest"])
    lock = tmp_path / "site-lock.yml"
    wanted = sha256((manifest.parent / DRIVER).read_text())
    change_entry(manifest, sha256=FIRST_USE)
    variables(site)["flexai_lock"] = str(lock)
    play = [
        {
            "hosts": "flexai_nodes",
            "gather_facts": False,
            "tasks": [
                {
                    "flexai.xpu.artefact": {
                        "name": "nvidia-driver",
                        "manifest": "{{ flexai_manifest }}",
                        "root": "{{ flexai_root }}",
                    }
                }
            ],
        }
    ]
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump(play))
    there = f"var/cache/flexai-xpu/{wanted}/{DRIVER}"

    predicted = run(tmp_path, site, playbook, "--check")
    assert predicted.stdout.count("changed=1") == 2, predicted.stdout
    assert not lock.exists()

    done = run(tmp_path, site, playbook)
    assert done.stdout.count("changed=1") == 2, done.stdout
    assert (tmp_path / "gpu1" / there).exists() and (tmp_path / "gpu2" / there).exists()
    assert [entry["sha256"] for entry in locks.read(str(lock)).values()] == [wanted]

    (tmp_path / "gpu2" / there).unlink()
    (manifest.parent / DRIVER).write_text("another file of that name")
    done = run(tmp_path, site, playbook)
    assert done.returncode != 0
    said = on_one_line(done.stdout + done.stderr)
    assert f"has SHA-256 {sha256('another file of that name')}, {lock} says {wanted}" in said
    assert "gpu1 : ok=1 changed=0" in said
    assert not (tmp_path / "gpu2" / there).exists()
