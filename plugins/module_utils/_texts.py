# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Several text files of a host that change together, and go back together."""

from __future__ import annotations

import os
import typing as t

from ._host import Host

# Path to text, None for no file; written in this order.
Texts = t.Dict[str, t.Optional[str]]

# Kept originals; what a site configures may hold a password, so they are root's alone.
ORIGINALS = "/var/lib/flexai-xpu/originals"
PRIVATE_MODE, PUBLIC_MODE = 0o600, 0o644
# Directories that come with our first file in them and go with our last, innermost first. An empty
# one means nothing to the programs that look there.
DIRECTORIES = (ORIGINALS, "/var/lib/flexai-xpu", "/etc/containerd/conf.d")


def read(host: Host, paths: t.Iterable[str]) -> Texts:
    return {path: host.read(path) for path in paths}


def write(host: Host, texts: Texts) -> None:
    """Make the files say this; those that do already are left alone."""
    for path, text in texts.items():
        if text is None:
            host.remove(path)
        elif host.read(path) != text:
            private = os.path.dirname(path) == ORIGINALS
            host.write(path, text, mode=PRIVATE_MODE if private else PUBLIC_MODE)
    if None in texts.values():
        for directory in DIRECTORIES:
            host.remove_empty(directory)
