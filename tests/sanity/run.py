# SPDX-License-Identifier: GPL-3.0-or-later
"""``make test-sanity``: every gate that reads the project instead of running it.

Gates run two at a time (the machines this is meant for have two cores); each prints its output when
it ends, a failed one does not hide the others, and the last lines are a table with minutes.
Everything about the collection is asked of the tarball, installed as a user would.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
WORK = ROOT / "build" / "sanity"
COLLECTION = WORK / "collections" / "ansible_collections" / "flexai" / "xpu"
# Keeps the checkout's and the user's configuration out; Ansible takes no /dev/null for it.
EMPTY_CONFIG = WORK / "empty.cfg"
PARALLEL = 2
TARGET_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DOCUMENTED = ("module", "filter", "inventory", "role")

# ansible-test wants pip's bootstrap script from a server of its own. Python brings pip along, so
# this stands in for it.
GET_PIP = """\
import subprocess, sys
subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True,
               stdout=subprocess.DEVNULL)
wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
install = [sys.executable, "-m", "pip", "install", "--quiet", *wanted]
sys.exit(subprocess.run(install).returncode if wanted else 0)
"""


@dataclass(frozen=True)
class Gate:
    """One check: a command, or a function that returns its output and raises where it fails."""

    name: str
    argv: Sequence[str | Path] = ()
    call: Callable[[], str] | None = None
    cwd: Path = ROOT
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a gate ended. ``seconds`` is wall time."""

    name: str
    passed: bool
    seconds: float
    output: str


class GateError(RuntimeError):
    """A gate that is a function found something; the message says what and how to mend it."""


def script(name: str) -> Path:
    return SCRIPTS / name


def run_gate(gate: Gate, clock: Callable[[], float] = time.monotonic) -> Result:
    started = clock()
    try:
        passed, output = (True, gate.call()) if gate.call else _execute(gate)
    except (GateError, OSError) as error:
        passed, output = False, str(error)
    return Result(gate.name, passed, clock() - started, output)


def _execute(gate: Gate) -> tuple[bool, str]:
    done = subprocess.run(
        [str(word) for word in gate.argv],
        cwd=gate.cwd,
        env={**os.environ, **gate.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout


def run_all(gates: Iterable[Gate], show: Callable[[Result], None]) -> list[Result]:
    """Run the gates, PARALLEL at a time; *show* each one when it ends."""

    def one(gate: Gate) -> Result:
        result = run_gate(gate)
        show(result)
        return result

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(one, gates))


def show(result: Result) -> None:
    """The output of a failed gate in full, of a passed one its last line."""
    text = result.output.strip()
    if result.passed:
        text = text.splitlines()[-1].strip() if text else ""
    verdict = "passed" if result.passed else "FAILED"
    print(f"--- {result.name}: {verdict}{': ' if text else ''}{text}", flush=True)


def report(results: Sequence[Result]) -> str:
    lines = ["", "minutes per gate"]
    for result in sorted(results, key=lambda result: -result.seconds):
        verdict = "passed" if result.passed else "failed"
        lines.append(f"  {result.name:<16} {result.seconds / 60:6.1f}  {verdict}")
    failed = sum(not result.passed for result in results)
    lines.append(f"gates: {len(results) - failed} passed, {failed} failed")
    return "\n".join(lines)


def tracked(*patterns: str) -> list[str]:
    """Files of this checkout that git knows or would take, and that exist."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = sorted(set(filter(None, listed.split("\0"))))
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def is_shell(path: Path) -> bool:
    """By its name, or by its first line where it has no suffix."""
    if path.suffix:
        return path.suffix == ".sh"
    with path.open("rb") as stream:
        return re.match(rb"#!.*\b(sh|bash)\b", stream.readline(80)) is not None


def read_and_lint() -> list[Gate]:
    """Gates that need nothing but the checkout."""
    # Plugins run under Ansible's own loader, whose library has no types; ansible-test reads them.
    typed = [name for name in tracked("*.py") if not name.startswith("plugins/")]
    shell = [name for name in tracked() if is_shell(ROOT / name)]
    yaml = tracked("*.yml", "*.yaml")
    return [
        Gate("mypy", [script("mypy"), "--cache-dir", WORK / "mypy", *typed]),
        Gate("ruff", [script("ruff"), "check", "--quiet", "."]),
        Gate("ruff format", [script("ruff"), "format", "--check", "."]),
        Gate("reuse", [script("reuse"), "lint"]),
        Gate("yamllint", [script("yamllint"), "--strict", *yaml]),
        Gate("shellcheck", ["shellcheck", *shell]),
        Gate("argument_specs", [sys.executable, "tests/sanity/argument_specs.py"]),
        Gate("changelog", [script("antsibull-changelog"), "lint"]),
    ]


def ask_the_collection(tarball: Path) -> list[Gate]:
    """Gates about what a user gets; the long ones first."""
    home = prepare_ansible_test()
    return [
        Gate(
            "ansible-test",
            # One at a time: it makes environments anew that another run has only begun.
            [
                *("flock", home / ".lock"),
                *(script("ansible-test"), "sanity", "--venv", "--python", TARGET_PYTHON),
            ],
            cwd=COLLECTION,
            env={
                "HOME": str(home),
                "ANSIBLE_CONFIG": str(EMPTY_CONFIG),
                "PIP_QUIET": "1",
            },
        ),
        Gate(
            "ansible-lint",
            [script("ansible-lint"), "--config-file", ROOT / ".ansible-lint", "--nocolor"],
            cwd=COLLECTION,
            env={
                "ANSIBLE_CONFIG": str(EMPTY_CONFIG),
                "ANSIBLE_COLLECTIONS_PATH": str(collections()),
            },
        ),
        Gate("galaxy-importer", call=lambda: galaxy_importer(tarball)),
        Gate("ansible-doc", call=ansible_doc),
        Gate("no ignores", call=no_ignores),
    ]


def collections() -> Path:
    return WORK / "collections"


def build() -> Path:
    """The tarball, and the collection installed from it where ansible-test expects one."""
    from xpubuild import collection

    shutil.rmtree(collections(), ignore_errors=True)
    tarball = collection.tarball(WORK)
    collection.install(collections())
    # ansible-test asks git which files there are.
    (COLLECTION / ".gitignore").write_text("/tests/output/\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=COLLECTION, check=True)
    return tarball


def prepare_ansible_test() -> Path:
    """A home directory for ansible-test whose cache holds the pip bootstrap script.

    It lies in the user's cache, named by what its environments depend on: making them takes longer
    than all the tests.
    """
    from xpubuild.cache import default_root, digest_file

    package = Path(sysconfig.get_path("purelib")) / "ansible_test"
    source = (package / "_internal/python_requirements.py").read_text(encoding="utf-8")
    version = re.search(r"\bpip='([\d.]+)'", source)
    if version is None:
        raise GateError(f"{package}: no pip version found; has ansible-core changed?")
    # An environment is a set of links to the interpreter that made it.
    interpreter = f"{sys.version} {Path(sys.executable).resolve()}"
    inputs = f"{digest_file(ROOT / 'requirements' / 'dev.txt')} {interpreter}"
    home = default_root() / "ansible-test" / hashlib.sha256(inputs.encode()).hexdigest()[:32]
    shim = home / f".ansible/test/cache/get_pip_{version[1].replace('.', '_')}.py"
    shim.parent.mkdir(parents=True, exist_ok=True)
    shim.write_text(GET_PIP, encoding="utf-8")
    return home


def galaxy_importer(tarball: Path) -> str:
    """What Galaxy says on upload. It exits 0 with warnings; ours has none to ignore."""
    passed, output = _execute(
        Gate(
            "galaxy-importer",
            [sys.executable, "-m", "galaxy_importer.main", tarball],
            cwd=WORK,
            env={
                "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
                # Both have a gate of their own, with stricter settings.
                "GALAXY_IMPORTER_RUN_ANSIBLE_TEST": "false",
                "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": "false",
                "ANSIBLE_CONFIG": str(EMPTY_CONFIG),
                "ANSIBLE_COLLECTIONS_PATH": str(collections()),
            },
        )
    )
    complaints = importer_complaints(output)
    if not passed or complaints:
        raise GateError("\n".join(complaints) or output)
    return output


def importer_complaints(output: str) -> list[str]:
    """Lines of the importer that a release must not have."""
    return [line for line in output.splitlines() if line.startswith(("WARNING:", "ERROR:"))]


def no_ignores() -> str:
    """An ignore file would make ansible-test pass by not looking."""
    found = tracked("tests/sanity/ignore*.txt")
    if found:
        raise GateError(f"{', '.join(found)}: mend what it hides, and remove the file")
    return "no sanity test is ignored"


def _doc(*arguments: str) -> str:
    done = subprocess.run(
        [script("ansible-doc"), *arguments],
        cwd=COLLECTION,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(EMPTY_CONFIG),
            "ANSIBLE_COLLECTIONS_PATH": str(collections()),
        },
        check=False,
    )
    if done.returncode != 0 or "[WARNING]" in done.stderr or "[ERROR]" in done.stderr:
        raise GateError(f"ansible-doc {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def shipped(kind: str) -> set[str]:
    """Names of what the collection has of *kind*, by its files."""
    if kind == "role":
        return {path.name for path in (COLLECTION / "roles").glob("*") if path.is_dir()}
    folder = COLLECTION / "plugins" / (f"{kind}s" if kind == "module" else kind)
    if kind == "filter":
        # One file may hold several; the collection's own rule is one file a filter.
        return {path.stem for path in folder.glob("[a-z]*.py") if _defines_filters(path)}
    return {path.stem for path in folder.glob("[a-z]*.py")}


def _defines_filters(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.ClassDef) and node.name == "FilterModule" for node in tree.body)


def ansible_doc() -> str:
    """Every plugin and role has documentation that ansible-doc can print."""
    count = 0
    for kind in DOCUMENTED:
        wanted = {f"flexai.xpu.{name}" for name in shipped(kind)}
        if not wanted:
            continue
        listed = set(json.loads(_doc("--type", kind, "--list", "--json", "flexai.xpu")))
        if missing := sorted(wanted - listed):
            raise GateError(f"ansible-doc lists no {kind} {', '.join(missing)}: document it")
        _doc("--type", kind, *sorted(wanted))
        count += len(wanted)
    if not count:
        raise GateError(f"{COLLECTION} has no plugin and no role: the tarball is empty")
    return f"{count} pages"


def ensure_shellcheck() -> None:
    """The one tool here that PyPI does not have."""
    if shutil.which("shellcheck"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "shellcheck"]
        subprocess.run(["apt-get", "update", "-q"], env=environment, check=False)
        subprocess.run(install, env=environment, check=False)
        return
    print("shellcheck is missing; install it: sudo apt-get install shellcheck", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    """Run all gates, or those whose names are given."""
    # make sets the path; without it this still has to be found
    sys.path.insert(0, str(ROOT / "native/build"))
    WORK.mkdir(parents=True, exist_ok=True)
    EMPTY_CONFIG.touch()
    ensure_shellcheck()
    gates = read_and_lint()
    failures: list[Result] = []
    try:
        # The slowest first, so that two lanes end at about the same time.
        gates = ask_the_collection(build()) + gates
    except (GateError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        failures.append(Result("collection", False, 0.0, str(error)))
        show(failures[0])
    unknown = sorted(set(argv) - {gate.name for gate in gates})
    if unknown:
        known = ", ".join(gate.name for gate in gates)
        print(f"no gate {', '.join(unknown)}; there are: {known}", file=sys.stderr)
        return 2
    wanted = [gate for gate in gates if not argv or gate.name in argv]
    results = failures + run_all(wanted, show)
    print(report(results))
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
