# SPDX-License-Identifier: Apache-2.0
"""Where packages and keys of a root file system come from."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import pytest
from xpubuild import debian
from xpubuild.cache import Cache
from xpubuild.toolchain import ToolchainError

DEB822 = """\
Types: deb
URIs: http://deb.example.org/debian-security
Suites: bookworm-security

Types: deb
URIs: http://mirror.example.org/debian/
Suites: bookworm
"""
ONE_LINE = """\
# deb http://commented.example.org/ubuntu noble main
deb [arch=amd64 signed-by=/k.gpg] https://third.example.org/apt stable main
deb [arch=amd64] http://de.archive.ubuntu.com/ubuntu noble main universe
"""


@pytest.mark.parametrize(
    ("sources", "distribution", "wanted"),
    [
        ([("debian.sources", DEB822)], "debian", "http://mirror.example.org/debian"),
        ([("debian.sources", DEB822)], "ubuntu", None),
        ([("sources.list", ONE_LINE)], "ubuntu", "http://de.archive.ubuntu.com/ubuntu"),
        (
            [("a.list", ONE_LINE), ("b.sources", DEB822)],
            "debian",
            "http://mirror.example.org/debian",
        ),
        ([("cd.list", "deb cdrom:[Debian]/debian bookworm main\n")], "debian", None),
        ([], "debian", None),
    ],
)
def test_the_mirror_is_the_one_apt_uses(
    sources: list[tuple[str, str]], distribution: str, wanted: str | None
) -> None:
    assert debian.mirror_from(sources, distribution) == wanted


GOOD = b"a keyring package"
PACKAGES = tuple(
    debian.Package("debian", path, hashlib.sha256(GOOD).hexdigest()) for path in ("old", "new")
)


def served(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str) -> bytes:
        name = url.rsplit("/", 1)[1]
        if name not in contents:
            raise urllib.error.URLError("404")
        return contents[name]

    monkeypatch.setattr(debian, "_fetch", fetch)
    monkeypatch.setattr(debian, "mirror", lambda _: "http://m/debian")


@pytest.mark.parametrize("contents", [{"new": GOOD}, {"old": b"forged", "new": GOOD}])
def test_a_keyring_that_is_gone_or_forged_is_passed_over(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(contents, monkeypatch)
    debian._fetch_pinned(PACKAGES, tmp_path / "deb")
    assert (tmp_path / "deb").read_bytes() == GOOD


def test_keys_with_another_digest_are_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served({"old": b"forged"}, monkeypatch)
    with pytest.raises(ToolchainError) as refusal:
        debian._fetch_pinned(PACKAGES, tmp_path / "deb")
    assert not (tmp_path / "deb").exists()
    forged = hashlib.sha256(b"forged").hexdigest()
    assert f"http://m/debian/old: sha256 is {forged}, pinned is {PACKAGES[0].sha256}" in str(
        refusal.value
    )
    assert "remedy:" in str(refusal.value)


def test_an_unknown_suite_is_named_with_the_known_ones(tmp_path: Path) -> None:
    words = "unknown suite 'buster'; known: bookworm, jammy, noble"
    with pytest.raises(ToolchainError, match=words):
        debian.rootfs(Cache(tmp_path), "buster", [])


def test_the_order_of_packages_is_no_other_root_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []

    def debootstrap(target: Path, suite: str, include: list[str], keys: Path) -> None:
        made.append(include)
        (target / "etc").mkdir(parents=True)

    monkeypatch.setattr(debian, "keyring", lambda cache, distribution: tmp_path / "keys")
    monkeypatch.setattr(debian, "_debootstrap", debootstrap)
    cache = Cache(tmp_path / "cache")
    first = debian.rootfs(cache, "bookworm", ["b", "a"])
    assert debian.rootfs(cache, "bookworm", ["a", "b", "a"]) == first
    assert made == [["a", "b"]]
    assert first.is_file() and not (first.parent / "root").exists()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("I: Retrieving InRelease ", "reading the archive's index"),
        ("I: Validating adduser 3.134", "downloading packages"),
        ("I: Configuring the base system...", "configuring them"),
        ("I: Configuring libc6:amd64...", None),
        ("W: Validating is not tried", None),
    ],
)
def test_progress_is_told_by_debootstraps_own_words(line: str, wanted: str | None) -> None:
    assert debian.phase(line) == wanted


def test_a_failed_debootstrap_shows_the_end_of_its_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = "echo 'I: Validating a'; echo 'I: Validating b'; echo 'E: no space left'; exit 1"
    with pytest.raises(ToolchainError, match=r"exited 1:\n(?s:.*)E: no space left"):
        debian._run_telling(["sh", "-c", script])
    assert capsys.readouterr().err == "    downloading packages …\n"
