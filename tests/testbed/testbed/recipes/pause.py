# SPDX-License-Identifier: GPL-3.0-or-later
"""The pause image: the one image a kubelet can't do without, and no registry is in reach."""

from __future__ import annotations

from pathlib import Path

from xpubuild import oci
from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.toolchain import REPOSITORY, run, zig, zig_version

# A registry that can't exist: nothing may ever try to fetch it.
IMAGE = "testbed.invalid/pause:v1"
ARCHIVE = "pause.tar"
DIGEST = "pause.digest"
SOURCE = REPOSITORY / "tests/testbed/pause/pause.c"
# Any number but root's; upstream's pause image has the same habit.
USER = "65535"


def _build(out: Path) -> None:
    program = out / "pause"
    compiler = [*zig(), "cc", "-target", "x86_64-linux-musl", "-static", "-Os", "-s"]
    run([*compiler, "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE])
    config = oci.Config(entrypoint=["/pause"], user=f"{USER}:{USER}")
    digest = oci.write_archive(out / ARCHIVE, IMAGE, [{"/pause": program}], config)
    (out / DIGEST).write_text(digest + "\n", encoding="utf-8")


def build(cache: Cache) -> Path:
    """``pause`` (static), ``pause.tar`` (the image IMAGE), ``pause.digest`` (of its manifest)."""
    inputs = {
        "source": digest_file(SOURCE),
        "recipe": digest_file(Path(__file__)),
        "writer": digest_file(Path(oci.__file__)),
        "zig": zig_version(),
        "image": IMAGE,
    }
    return cache.get(Recipe("pause", inputs, _build))
