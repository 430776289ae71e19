# SPDX-License-Identifier: GPL-3.0-or-later
"""Cluster DNS: CoreDNS from its Go module, with the few plugins that a testbed needs, as an image.

The program is built apart from its image: what the image says of it changes more often.
"""

from __future__ import annotations

from pathlib import Path

from xpubuild import oci
from xpubuild.cache import Cache, Recipe, digest_file
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

VERSION = "v1.12.1"
IMAGE = f"testbed.invalid/coredns:{VERSION}"
ARCHIVE = "coredns.tar"
DIGEST = "coredns.digest"
MODULE = REPOSITORY / "tests/testbed/modules/coredns"


def _program(out: Path) -> None:
    go_build(MODULE, {out / "coredns": "."})


def build(cache: Cache) -> Path:
    """``coredns.tar`` (the image IMAGE) and ``coredns.digest`` (of its manifest)."""
    main = digest_file(MODULE / "main.go")
    built = cache.get(
        Recipe("coredns-program", go_inputs(MODULE, Path(__file__), main=main), _program)
    )

    def pack(out: Path) -> None:
        config = oci.Config(entrypoint=["/coredns"])
        files = {"/coredns": built / "coredns"}
        digest = oci.write_archive(out / ARCHIVE, IMAGE, [files], config)
        (out / DIGEST).write_text(digest + "\n", encoding="utf-8")

    inputs = {"program": built.name, "image": IMAGE, "writer": digest_file(Path(oci.__file__))}
    return cache.get(Recipe("coredns", inputs, pack))
