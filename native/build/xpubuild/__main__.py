# SPDX-License-Identifier: Apache-2.0
"""``python -m xpubuild``: see ``--help`` and the Makefile, which is the usual way in."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import artefacts, collection, gotest
from .cache import Cache
from .recipes import volcano_source
from .toolchain import REPOSITORY, ToolchainError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Build what flexai.xpu installs; everything is cached by the hash of its inputs."""


@cli.command("dist")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="directory to fill")
def dist_command(out: Path) -> None:
    """The collection tarball, and the native artefacts with their manifest."""
    artefacts.publish(artefacts.native(Cache()), out)
    click.echo(collection.tarball(out))


@cli.command("collection")
@click.option("--into", type=click.Path(path_type=Path), required=True, help="collections path")
def collection_command(into: Path) -> None:
    """Build the tarball and install it into a collections path, as a user would."""
    click.echo(collection.install(into))


@cli.command("docs")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="directory to fill")
def docs_command(out: Path) -> None:
    """Reference pages of every plugin and role, from their own documentation."""
    click.echo(f"{collection.docs(out)} pages in {out}")


@cli.command("volcano-source")
@click.option("--tree", type=click.Path(path_type=Path), required=True, help="Volcano's sources")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="directory to fill")
def volcano_source_command(tree: Path, out: Path) -> None:
    """Volcano's programs and the plugin huawei-xpu from a source tree."""
    volcano_source.build(tree, out.resolve())
    click.echo(out)


@cli.command("go-test")
@click.argument("modules", nargs=-1, required=True)
@click.option("--soak", is_flag=True, help="only what takes minutes")
def go_test_command(modules: tuple[str, ...], soak: bool) -> None:
    """Vet and test the Go modules in these directories."""
    sys.exit(gotest.run_all([REPOSITORY / module for module in modules], soak=soak))


def main() -> None:
    """Run the command line; a missing tool is one sentence, not a traceback."""
    try:
        cli(prog_name="xpubuild")
    except (ToolchainError, FileNotFoundError) as error:
        click.echo(f"xpubuild: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
