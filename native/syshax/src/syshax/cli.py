# SPDX-License-Identifier: Apache-2.0
"""The program ``syshax``. Results go to stdout, complaints to stderr with exit code 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, config
from .config import ConfigError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="syshax", description="The sysHAX conductor.")
    top.add_argument("--version", action="version", version=f"syshax {__version__}")
    top.add_argument(
        "--config",
        type=Path,
        dest="path",
        help="configuration file (default: $SYSHAX_CONFIG, else /etc/syshax/config.yaml for root)",
    )
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="write a configuration with defaults")
    setter = commands.add_parser("config", help="set one value, written in the file in one step")
    setter.add_argument("key", help="for example gpu.port, services.gpu.port or model")
    setter.add_argument("value")
    runner = commands.add_parser("run", help="serve until SIGTERM; SIGHUP reads the file again")
    runner.add_argument(
        "--strict", action="store_true", help="stop when the connectivity test finds fault"
    )
    commands.add_parser("check-config", help="validate the configuration; exit code 1 if it is not")
    commands.add_parser("interfaces", help="where the engines and the conductor are")
    commands.add_parser("model", help="the model and its default parameters")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (it failed) or 2 (it was not understood)."""
    arguments = parser().parse_args(argv)
    path = arguments.path or config.default_path()
    try:
        return int(_COMMANDS[arguments.command](path, arguments) or 0)
    except (ConfigError, OSError) as error:
        print(f"syshax: {error}", file=sys.stderr)
        return 1


def _init(path: Path, _: argparse.Namespace) -> None:
    if path.exists():
        kept = path.with_name(path.name + ".old")
        config.write(kept, path.read_text(encoding="utf-8", errors="surrogateescape"))
        print(f"kept the former configuration as {kept}")
    config.write(path, config.example())
    print(f"wrote {path}")


def _config(path: Path, arguments: argparse.Namespace) -> None:
    tree = config.read(path) if path.exists() else config.defaults()
    config.write(path, config.dump(config.set_value(tree, arguments.key, arguments.value)))
    print(f"set {arguments.key} to {arguments.value}")


def _check(path: Path, _: argparse.Namespace) -> None:
    _warn(config.load(path))
    print(f"{path} is valid")


def _warn(loaded: config.Config) -> None:
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _interfaces(path: Path, _: argparse.Namespace) -> None:
    loaded = config.load(path)
    for engine in loaded.engines:
        print(f"{engine.name}: http://{engine.host}:{engine.port}")
    host, port = loaded["services.conductor.host"], loaded["services.conductor.port"]
    print(f"conductor: http://{host}:{port}")


def _model(path: Path, _: argparse.Namespace) -> None:
    loaded = config.load(path)
    print(f"model: {loaded['models.default'] or '(as the engine serves it)'}")
    print(f"max_tokens: {loaded['models.params.max_tokens']}")
    print(f"temperature: {loaded['models.params.temperature']}")


def _run(path: Path, arguments: argparse.Namespace) -> int:
    # Imported here: what only edits a file need not load a web server.
    from . import server

    loaded = config.load(path)
    _warn(loaded)
    return server.run(loaded, path, strict=arguments.strict)


_COMMANDS = {
    "init": _init,
    "config": _config,
    "run": _run,
    "check-config": _check,
    "interfaces": _interfaces,
    "model": _model,
}
