# SPDX-License-Identifier: Apache-2.0
"""One tree of settings, however old the file or the key that says it.

``KEYS`` is the tree; ``ALIASES`` maps what three generations of sysHAX called things. Reading never
changes a file; a setting that is unknown is warned about, one that is wrong is an error that names
its path, what was found and what is wanted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from .dialects import DIALECTS
from .scheduler import CPU, GPU, Gates

HANDOFFS = ("auto", *DIALECTS, "none")
_ANYWHERE = ("0.0.0.0", "::", "localhost", "127.0.0.1", "::1")


class ConfigError(ValueError):
    """The configuration can't be used; every line of the message is one reason."""


class Key(NamedTuple):
    """One setting. ``low`` and ``high`` bound numbers; ``unused`` says that nothing reads it."""

    kind: type
    default: Any
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    unused: bool = False


KEYS: Mapping[str, Key] = {
    "services.gpu.host": Key(str, "0.0.0.0"),
    "services.gpu.port": Key(int, 8001, 1, 65535),
    "services.cpu.host": Key(str, "0.0.0.0"),
    "services.cpu.port": Key(int, 8002, 1, 65535),
    "services.conductor.host": Key(str, "0.0.0.0"),
    "services.conductor.port": Key(int, 8010, 1, 65535),
    "models.default": Key(str, None, nullable=True),
    "models.params.max_tokens": Key(int, 200, low=1),
    "models.params.temperature": Key(float, 0.7, low=0, high=2),
    "models.params.test_prompt": Key(str, None, nullable=True, unused=True),
    "models.params.test_tokens": Key(int, None, nullable=True, unused=True),
    "system.max_queue_size": Key(int, 200, low=0),
    "system.request_timeout": Key(float, 600.0, low=1),
    "system.first_byte_timeout": Key(float, 120.0, low=0.1),
    "system.idle_timeout": Key(float, 60.0, low=0.1),
    "system.connect_timeout": Key(float, 3.0, low=0.1),
    "system.drain_timeout": Key(float, 60.0, low=0),
    "system.max_body_bytes": Key(int, 16 << 20, low=1024),
    "system.max_header_bytes": Key(int, 64 << 10, low=1024),
    "decider.max_num_seqs": Key(int, 256, low=1, nullable=True),
    "decider.gpu_cache_threshold": Key(float, 90.0, low=0, high=100),
    "decider.cpu_throughput_threshold": Key(float, 10.0, low=0),
    "decider.cpu_max_batch_size": Key(int, 20, low=1),
    "decider.auto_pd_offload": Key(bool, False),
    "decider.min_prompt_chars": Key(int, 0, low=0),
    "decider.token_limit_multiplier": Key(float, None, nullable=True, unused=True),
    "decider.token_limit_min": Key(int, None, nullable=True, unused=True),
    "decider.token_limit_max": Key(int, None, nullable=True, unused=True),
    "monitor.interval": Key(float, 5.0, low=0.1),
    "heartbeat.interval": Key(float, 10.0, low=0.1),
    "heartbeat.timeout": Key(float, 3.0, low=0.1),
    "heartbeat.fail_threshold": Key(int, 3, low=1),
    "handoff.dialect": Key(str, "auto"),
    "handoff.probe_timeout": Key(float, 5.0, low=0.1),
    "handoff.release_on_cancel": Key(bool, False),
    "auth.keys_file": Key(str, None, nullable=True),
    "auth.upstream_key_file": Key(str, None, nullable=True),
    "log.level": Key(str, "info"),
}

# Old name -> new name; a name that ends in "." stands for everything below it.
ALIASES: Mapping[str, str] = {
    "gpu.": "services.gpu.",
    "xpu.": "services.gpu.",
    "services.xpu.": "services.gpu.",
    "cpu.": "services.cpu.",
    "conductor.": "services.conductor.",
    "host": "services.host",
    "model": "models.default",
    "maxtokens": "models.params.max_tokens",
    "temperature": "models.params.temperature",
    "auto_pd_offload": "decider.auto_pd_offload",
    "cpu_max_batch_size": "decider.cpu_max_batch_size",
    "request_timeout": "system.request_timeout",
}
# One key that sets several.
_SPREAD = {"services.host": [f"services.{name}.host" for name in (GPU, CPU, "conductor")]}
_LOG_LEVELS = ("debug", "info", "warning", "error")


def canonical(key: str) -> list[str]:
    """The settings that *key*, of any generation, means; empty when there is none."""
    for old, new in ALIASES.items():
        if key == old or (old.endswith(".") and key.startswith(old)):
            key = new + key[len(old) :]
            break
    return _SPREAD.get(key, [key] if key in KEYS else [])


class Engine(NamedTuple):
    """Where one engine listens. ``name`` is what metrics and errors call it."""

    name: str
    role: str
    host: str
    port: int

    @property
    def reached_at(self) -> str:
        """The host to connect to; "every address" of an engine is one of this machine's."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def url(self) -> str:
        host = self.reached_at
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Config:
    """A valid configuration. ``warnings`` are for people; nothing depends on them."""

    values: Mapping[str, Any]
    engines: tuple[Engine, ...]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def gates(self) -> Gates:
        return Gates(*(self.values[f"decider.{name}"] for name in Gates._fields))


def default_path() -> Path:
    """``$SYSHAX_CONFIG``, else /etc for root and the user's own configuration for others."""
    configured = os.environ.get("SYSHAX_CONFIG")
    if configured:
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/etc/syshax/config.yaml")
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "syshax" / "config.yaml"


def load(path: Path) -> Config:
    """Read and validate *path*."""
    return validate(read(path))


def read(path: Path) -> dict[str, Any]:
    """The file's tree as it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `syshax init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the top must be a mapping, not {type(tree).__name__}")
    return tree


def validate(tree: Mapping[str, Any]) -> Config:
    """The configuration that *tree* says, or every reason why it says none."""
    errors: list[str] = []
    warnings: list[str] = []
    values = {name: key.default for name, key in KEYS.items()}
    pools: dict[str, list[Any]] = {}
    for dotted, value in _flatten(tree):
        pool = _pool_of(dotted)
        if pool and isinstance(value, list):
            pools[pool] = value
            continue
        if pool is None and _legacy_url(dotted, value, values, errors):
            continue
        names = canonical(dotted)
        if not names:
            warnings.append(f"{dotted}: no such setting; it is ignored")
        for name in names:
            if KEYS[name].unused:
                warnings.append(f"{dotted}: accepted for old files, but nothing uses it")
            try:
                values[name] = check(name, value)
            except ConfigError as error:
                errors.append(str(error))
    engines = _engines(values, pools, errors)
    errors.extend(_cross_checks(values, engines))
    if errors:
        raise ConfigError("\n".join(errors))
    return Config(values, tuple(engines), tuple(warnings))


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            found.extend(_flatten(value, f"{path}."))
        elif value is not None or path in KEYS:
            found.append((path, value))
    return found


def _pool_of(dotted: str) -> str | None:
    return {"services.gpu": GPU, "services.xpu": GPU, "services.cpu": CPU}.get(dotted)


def _legacy_url(dotted: str, value: Any, values: dict[str, Any], errors: list[str]) -> bool:
    """``services.gpu.url`` and ``metrics_url`` of May 2025; the latter is the former's /metrics."""
    parts = dotted.split(".")
    if len(parts) != 3 or parts[0] != "services" or parts[2] not in ("url", "metrics_url"):
        return False
    if parts[2] == "metrics_url":
        return True
    try:
        url = urlsplit(str(value))
        host, port = url.hostname, url.port or 80
    except ValueError:
        host, port = None, 0
    if host is None:
        errors.append(f"{dotted}: {value!r} is no URL; http://HOST:PORT is wanted")
        return True
    role = {"xpu": GPU}.get(parts[1], parts[1])
    values[f"services.{role}.host"], values[f"services.{role}.port"] = host, port
    return True


def check(name: str, value: Any) -> Any:
    """*value* as setting *name* keeps it."""
    key = KEYS[name]
    if value is None:
        if key.nullable:
            return None
        raise ConfigError(f"{name}: nothing is set; {_wanted(key)} is wanted")
    if key.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int to Python, not to a person.
    if not isinstance(value, key.kind) or (isinstance(value, bool) and key.kind is not bool):
        raise ConfigError(
            f"{name}: {value!r} is a {type(value).__name__}; {_wanted(key)} is wanted"
        )
    # Written this way round, so that NaN fails.
    if isinstance(value, (int, float)) and not (
        (key.low is None or value >= key.low) and (key.high is None or value <= key.high)
    ):
        raise ConfigError(f"{name}: {value!r} is out of range; {_wanted(key)} is wanted")
    if name == "handoff.dialect" and value not in HANDOFFS:
        raise ConfigError(f"{name}: {value!r} is unknown; one of {', '.join(HANDOFFS)} is wanted")
    if name == "log.level" and value not in _LOG_LEVELS:
        raise ConfigError(f"{name}: {value!r} is unknown; one of {', '.join(_LOG_LEVELS)}")
    return value


def _wanted(key: Key) -> str:
    noun = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[key.kind]
    if key.low is not None and key.high is not None:
        return f"{noun} from {key.low:g} to {key.high:g}"
    return f"{noun} from {key.low:g}" if key.low is not None else noun


def _engines(
    values: Mapping[str, Any], pools: Mapping[str, list[Any]], errors: list[str]
) -> list[Engine]:
    engines: list[Engine] = []
    for role in (GPU, CPU):
        if role not in pools:
            host, port = values[f"services.{role}.host"], values[f"services.{role}.port"]
            engines.append(Engine(role, role, host, port))
            continue
        for index, entry in enumerate(pools[role]):
            engine = _pool_member(role, index, entry, errors)
            if engine is not None:
                engines.append(engine)
    if not engines:
        errors.append("services: no engine is named, neither gpu nor cpu")
    return engines


def _pool_member(role: str, index: int, entry: Any, errors: list[str]) -> Engine | None:
    where = f"services.{role}[{index}]"
    if not isinstance(entry, dict):
        errors.append(f"{where}: {entry!r} is no mapping; host and port are wanted")
        return None
    for unknown in sorted(set(map(str, entry)) - {"host", "port"}):
        errors.append(f"{where}.{unknown}: no such setting; host and port are")
    try:
        host = check(f"services.{role}.host", entry.get("host", "0.0.0.0"))
        port = check(f"services.{role}.port", entry.get("port"))
    except ConfigError as error:
        errors.append(str(error).replace(f"services.{role}", where, 1))
        return None
    return Engine(f"{role}-{index}", role, host, port)


def _cross_checks(values: Mapping[str, Any], engines: list[Engine]) -> list[str]:
    errors = []
    own = (values["services.conductor.host"], values["services.conductor.port"])
    seen: dict[str, Engine] = {}
    for engine in engines:
        if engine.port == own[1] and (
            engine.host == own[0] or (engine.host in _ANYWHERE and own[0] in _ANYWHERE)
        ):
            errors.append(
                f"services: {engine.name} and the conductor are both {engine.host}:{engine.port}; "
                "the conductor would ask itself. Give one of them another port"
            )
        if engine.url in seen:
            errors.append(
                f"services: {seen[engine.url].name} and {engine.name} are both {engine.url}"
            )
        seen[engine.url] = engine
    return errors


def set_value(tree: dict[str, Any], key: str, text: str) -> dict[str, Any]:
    """*tree* with *key*, of any generation, set to what *text* says; the result is valid."""
    names = canonical(key)
    if not names:
        raise ConfigError(f"{key}: no such setting; settings are {', '.join(KEYS)}")
    for name in names:
        _put(tree, name, check(name, parse(KEYS[name], text)))
    validate(tree)
    return tree


def parse(key: Key, text: str) -> Any:
    """What a person typed, as a value of the key's kind where it can be one."""
    if key.nullable and text in ("", "null", "none"):
        return None
    if key.kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if key.kind is str:
        return text
    try:
        return key.kind(text)
    except ValueError:
        return text


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    # An older spelling of the same setting in the file would win or lose by its place in it.
    for dotted, _ in _flatten(tree):
        if dotted != name and canonical(dotted) == [name]:
            _drop(tree, dotted.split("."))
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if isinstance(child, list):
            if len(child) != 1 or not isinstance(child[0], dict):
                raise ConfigError(
                    f"{name}: the file lists {len(child)} engines there; edit the file instead"
                )
            child = child[0]
        elif not isinstance(child, dict):
            child = node[parent] = {}
        node = child
    node[last] = value


def _drop(tree: dict[str, Any], path: list[str]) -> None:
    node: Any = tree
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]


def write(path: Path, text: str) -> None:
    """Replace *path* in one step; it may hold no secret, but the names of one.

    A file that is there keeps its mode: the service that reads it may be nobody's user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o7777 if path.exists() else 0o640
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def dump(tree: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))


def defaults() -> dict[str, Any]:
    """The tree with every setting at its default."""
    tree: dict[str, Any] = {}
    for name, key in KEYS.items():
        if not key.unused:
            _put(tree, name, key.default)
    return tree


def example() -> str:
    """What `syshax init` writes."""
    return "# Settings of the sysHAX conductor; `syshax check-config` reads it over.\n" + dump(
        defaults()
    )
