# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The NVIDIA driver changed: installed, replaced, rolled back, removed.

What is about to stand there is noted before it is touched, with what stood there before, so that a
run that dies is taken up, and a driver that fails gives way to the former one.
"""

from __future__ import annotations

import typing as t

from . import _driver_packages as by_packages
from . import _kernel as kernel
from . import _nvidia_driver as driver
from . import _packages as packages
from . import _records as records
from . import _repositories as repositories
from ._decision import BLOCKED, OK
from ._driver_packages import PACKAGES, RUN
from ._errors import XpuError
from ._host import Host, system_of

INSTALL_LIMIT_S = 1800
INITRAMFS_LIMIT_S = 600
UNIT_LIMIT_S = 120
TOOL_LIMIT_S = 60
LOG = "/var/log/nvidia-installer.log"
FABRIC_UNIT = "nvidia-fabricmanager.service"
# Those that rest on others first.
MODULES = ("nvidia_drm", "nvidia_peermem", "nvidia_uvm", "nvidia_modeset", "nvidia")
# What the record says of a driver: enough to bring it back.
DRIVER_KEYS = ("version", "method", "installer", "flags", "asked")

Driver = t.Mapping[str, t.Any]


def describe(facts: driver.Facts) -> str:
    """The state in lines, for the diff."""
    barred = "nouveau barred\n" if facts.nouveau_barred else ""
    daemon = "persistenced enabled\n" if facts.persistenced_enabled else ""
    asked = facts.record.get("asked") or ()
    listed = f"packages {', '.join(asked)}\n" if asked and facts.library else ""
    return f"driver {facts.library or 'absent'}\n{listed}{barred}{daemon}{facts.pin}"


def _predict(facts: driver.Facts, wanted: driver.Wanted, absent: bool) -> str:
    if absent:
        return f"driver {'absent' if facts.ours else facts.library or 'absent'}\n"
    if driver.waits_for_nouveau(facts):
        return describe(facts._replace(nouveau_barred=True))
    return describe(
        facts._replace(
            library=wanted.version,
            nouveau_barred=True,
            persistenced_enabled=wanted.persistenced or facts.persistenced_enabled,
            record={**facts.record, "asked": driver.asked_names(facts, wanted)},
            pin=driver.wanted_pin(facts, wanted),
        )
    )


def _must(host: Host, argv: t.Sequence[str], limit_s: float, remedy: str) -> None:
    done = host.run(argv, timeout_s=limit_s)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-800:]
        raise XpuError(f"{' '.join(argv)} ended with rc {done.rc}: {tail}.", remedy)


def _note(host: Host, **values: t.Any) -> dict[str, t.Any]:
    """Our record with *values* in it; None takes one out."""
    record = {**records.read(host, driver.RECORD), **values}
    kept = {name: value for name, value in record.items() if value is not None}
    records.write(host, driver.RECORD, kept)
    return kept


# -- nouveau ---------------------------------------------------------------------------------


def _set_bar(host: Host, facts: driver.Facts, barred: bool) -> None:
    """Our file, and the initramfs that must know of it; noted first, so that no rebuild is lost."""
    if facts.nouveau_barred != barred:
        _note(host, initramfs_due=True)
        if barred:
            host.write(driver.MODPROBE_FILE, driver.MODPROBE_TEXT)
        else:
            host.remove(driver.MODPROBE_FILE)
    if not records.read(host, driver.RECORD).get("initramfs_due"):
        return
    argv = kernel.initramfs_argv(facts.kernel)
    if argv:
        _must(
            host,
            argv,
            INITRAMFS_LIMIT_S,
            "mend what it names (room under /boot, most often) and run this again.",
        )
    _note(host, initramfs_due=None)


# -- by a .run file --------------------------------------------------------------------------


def _run_installer(host: Host, installer: str, flags: t.Sequence[str]) -> None:
    # Through sh, so that a cache mounted noexec does no harm.
    _must(
        host,
        ["sh", host.path(installer), *flags],
        INSTALL_LIMIT_S,
        f"read {LOG} on the host, mend what it names, and run this again.",
    )


def _is_as_fetched(host: Host, installer: str) -> bool:
    """An artefact lies in a directory that its digest names; only an unaltered one runs again."""
    return bool(installer) and host.digest(installer) == installer.split("/")[-2]


# -- by packages -----------------------------------------------------------------------------


def _set_file(host: Host, path: str, text: str) -> None:
    """A file of ours with *text*; none where that is empty."""
    if text == (host.read(path) or ""):
        return
    if text:
        host.write(path, text)
    else:
        host.remove(path)


def _refuse_a_second_driver(host: Host, manager: str, exact: t.Sequence[str]) -> None:
    """Beside a .run file no package may bring the driver along."""
    argv = repositories.trial_argv(manager, exact)
    done = host.run(argv, timeout_s=repositories.QUERY_LIMIT_S)
    words = {word for line in done.out.splitlines() for word in line.split()[:2]}
    brought = sorted(filter(driver.DRIVER_PACKAGE.fullmatch, words))
    if brought:
        raise XpuError(
            f"{' and '.join(exact)} would bring the driver as packages ({', '.join(brought)}) "
            "beside the .run file. Nothing was changed.",
            "set nvidia_driver_method: packages, or nvidia_driver_fabric_packages to names that "
            "come without the driver.",
        )


def _resolve(host: Host, manager: str, what: Driver) -> list[str]:
    """The packages by name and exact version; an error, before any change, where none has them."""
    if not what["asked"]:
        return []
    exact = repositories.resolve(host, manager, what["asked"], what["version"], by_packages.REMEDY)
    if what["method"] == RUN:
        _refuse_a_second_driver(host, manager, exact)
    return exact


def _run_manager(host: Host, manager: str, version: str, exact: t.Sequence[str]) -> None:
    _set_file(host, by_packages.PIN_FILE, by_packages.pin(manager, version) if exact else "")
    if not exact:
        return
    before = packages.everything(host).versions.keys()
    try:
        packages.must(
            host,
            repositories.install_argv(manager, exact),
            INSTALL_LIMIT_S,
            "mend what the package manager names and run this again.",
        )
    finally:
        # What came with it, dependencies too, is ours; noted also where it came in part.
        came = packages.everything(host).versions.keys() - before
        ours = records.read(host, driver.RECORD).get("packages", ())
        _note(host, packages=sorted({*ours, *came}))


def _purge(host: Host, manager: str, names: t.Iterable[str]) -> None:
    there = packages.traces(host, names)
    if there:
        argv = packages.removal_argv(manager, there)
        packages.must(host, argv, INSTALL_LIMIT_S, "mend the package system and run this again.")


def _have_module_built(host: Host, version: str) -> None:
    """A package whose module could not be built is installed all the same; DKMS says so aside."""
    release = kernel.running()
    name = by_packages.registered(host, version)
    if not name or by_packages.built(host, version, release):
        return
    _must(
        host,
        ["dkms", "install", f"{name}/{version}", "-k", release],
        INSTALL_LIMIT_S,
        f"read /var/lib/dkms/{name}/{version}/build/make.log on the host, mend what it names "
        "(headers of the running kernel, most often), and run this again.",
    )
    if not by_packages.built(host, version, release):
        raise XpuError(
            f"DKMS has not built {name} {version} for the running kernel {release}, and says so "
            "nowhere.",
            f"run `dkms status {name}` on the host.",
        )


def _unload(host: Host) -> None:
    """Take the running module out. One that stays is no failure: the next boot loads the new one,
    and `reboot_required` says so."""
    for name in MODULES:
        loaded = host.exists(f"/sys/module/{name}")
        if loaded or (name == MODULES[-1] and driver.loaded_version(host)):
            host.run(["modprobe", "-r", name], timeout_s=UNIT_LIMIT_S)


def _load(host: Host) -> None:
    if driver.loaded_version(host):
        return
    _must(
        host,
        ["modprobe", MODULES[-1]],
        UNIT_LIMIT_S,
        "read `dmesg` on the host for why the kernel refuses the module.",
    )
    # Without it cards forget their state between programs; with it they are there at once.
    host.run(["systemctl", "start", driver.PERSISTENCED_UNIT], timeout_s=UNIT_LIMIT_S)


# -- either ----------------------------------------------------------------------------------


def _check_version(host: Host, version: str) -> None:
    found = driver.library_version(host)
    if found != version:
        raise XpuError(
            f"The installer ended well, but libcuda.so.1 leads to {found or 'no driver'}, not to "
            f"{version}.",
            f"read {LOG} on the host, and check that the artefact is the version it says.",
        )


def _check_it_works(host: Host, version: str) -> None:
    """Where the new module runs already, the driver's own tool must reach the cards."""
    if driver.loaded_version(host) != version:
        return
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = host.run(query, timeout_s=TOOL_LIMIT_S)
    # The first word: a card's line may say more.
    said = {line.split(",")[0].strip() for line in done.out.splitlines() if line.strip()}
    if done.rc != 0 or said != {version}:
        words = (done.err.strip() or done.out.strip())[-400:] or "nothing"
        raise XpuError(
            f"Driver {version} is installed, but nvidia-smi ended with rc {done.rc} and said: "
            f"{words}.",
            "read `dmesg` on the host for what the kernel module says of the cards.",
        )


def _put_in(
    host: Host, manager: str, what: Driver, exact: t.Sequence[str], *, files: bool = True
) -> None:
    """The driver *what* in place of whatever stands there, and seen to work. Without *files* that
    of a .run file stands there already, and only what follows it is missing."""
    version = what["version"]
    if what["method"] == PACKAGES:
        _unload(host)
        _run_manager(host, manager, version, exact)
        _check_version(host, version)
        _have_module_built(host, version)
        _load(host)
    else:
        if files:
            _run_installer(host, what["installer"], what["flags"])
        _check_version(host, version)
        _run_manager(host, manager, version, exact)
    _check_it_works(host, version)


def _described(record: Driver) -> dict[str, t.Any]:
    """The driver that a record tells of; an older release noted no method."""
    return {**dict.fromkeys(DRIVER_KEYS), "method": RUN, **record}


def _former(facts: driver.Facts) -> dict[str, t.Any] | None:
    """The driver to go back to; a run that died has noted it already."""
    if facts.record.get("state") == driver.INSTALLING:
        found: dict[str, t.Any] | None = facts.record.get("former")
        return found
    if facts.ours and facts.library:
        return {name: facts.record.get(name) for name in DRIVER_KEYS}
    return None


def _without_a_former(host: Host, manager: str, error: XpuError) -> t.NoReturn:
    """Nothing to go back to but the host without a driver."""
    _unload(host)
    _purge(host, manager, records.read(host, driver.RECORD).get("packages", ()))
    _set_file(host, by_packages.PIN_FILE, "")
    _note(host, packages=None)
    raise XpuError(
        f"{error.msg} There was no driver before, and none is in force.", error.remedy
    ) from error


def _roll_back(
    host: Host,
    manager: str,
    former: Driver | None,
    error: XpuError,
    daemons: t.Sequence[str],
) -> t.NoReturn:
    """Bring the former driver back with the *daemons* that were stopped for the new one, and say
    how that went beside what went wrong first."""
    if not former:
        _without_a_former(host, manager, error)
    what = _described(former)
    version, installer = what["version"], what["installer"] or ""
    if what["method"] == RUN and not _is_as_fetched(host, installer):
        raise XpuError(
            f"{error.msg} The former driver {version} can't be brought back: its installer "
            f"{installer or '(unknown)'} is not there, or not as it was fetched.",
            error.remedy,
        )
    back = {**dict.fromkeys(DRIVER_KEYS), **former}
    _note(host, **back, state=driver.INSTALLING, former=None)
    what = {**what, "asked": what["asked"] or (), "flags": what["flags"] or ()}
    try:
        _put_in(host, manager, what, _resolve(host, manager, what))
    except XpuError as second:
        raise XpuError(
            f"{error.msg} The former driver {version} could not be brought back either: "
            f"{second.msg}",
            error.remedy,
        ) from error
    for unit in daemons:
        host.run(["systemctl", "start", unit], timeout_s=UNIT_LIMIT_S)
    _note(host, state=driver.INSTALLED)
    raise XpuError(f"{error.msg} The former driver {version} is in force again.", error.remedy)


def _refuse_holders(host: Host) -> None:
    names = ", ".join(map(str, driver.holders(host)))
    if names:
        raise XpuError(
            f"The driver can't be replaced while programs use the cards: {names}. "
            "Nothing was changed.",
            "stop them (role node_transaction drains pods), then run this again.",
        )


def _new(facts: driver.Facts, wanted: driver.Wanted, installer: str) -> dict[str, t.Any]:
    """The driver that shall stand there, as the record tells of it."""
    what: dict[str, t.Any] = {
        "version": wanted.version,
        "method": wanted.method,
        "asked": driver.asked_names(facts, wanted),
    }
    if wanted.method == RUN:
        flavour = driver.module_type(facts, wanted)
        what["installer"] = installer
        what["flags"] = driver.installer_flags(wanted, flavour, facts.kernel.secure_boot)
    return what


def _replace(
    host: Host, facts: driver.Facts, what: Driver, exact: t.Sequence[str], files: bool
) -> None:
    if what["method"] == RUN and not (what["installer"] and host.exists(what["installer"])):
        raise XpuError(
            f"The installer {what['installer'] or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    if facts.loaded:
        _refuse_holders(host)
    former = _former(facts)
    asked_before = set(facts.record.get("asked", ()))
    begun = {**dict.fromkeys(DRIVER_KEYS), **what}
    _note(host, **begun, state=driver.INSTALLING, former=former)
    # These hold the module; a daemon that isn't there is as good as stopped.
    daemons = (driver.PERSISTENCED_UNIT, FABRIC_UNIT) if facts.loaded else ()
    for unit in daemons:
        host.run(["systemctl", "stop", unit], timeout_s=UNIT_LIMIT_S)
    try:
        _put_in(host, facts.manager, what, exact, files=files)
    except XpuError as error:
        _roll_back(host, facts.manager, former, error, daemons)
    _purge(host, facts.manager, (asked_before - set(what["asked"])) & facts.our_packages)
    _note(host, state=driver.INSTALLED, former=None)


def _start_fabric(host: Host, version: str) -> None:
    """Beside a module of another version it doesn't start; the boot that loads the new one does."""
    verbs = ("enable", "restart") if driver.loaded_version(host) == version else ("enable",)
    for verb in verbs:
        _must(
            host,
            ["systemctl", verb, FABRIC_UNIT],
            UNIT_LIMIT_S,
            f"look at `journalctl -u {FABRIC_UNIT}`: its version must be the driver's.",
        )


def install(host: Host, facts: driver.Facts, wanted: driver.Wanted, installer: str) -> None:
    replacing = driver.needs_installer(facts, wanted) and not driver.waits_for_nouveau(facts)
    what = _new(facts, wanted, installer)
    exact = _resolve(host, facts.manager, what) if replacing else []
    _set_bar(host, facts, True)
    if driver.waits_for_nouveau(facts):
        return
    _set_file(host, by_packages.SIGNING_FILE, driver.wanted_signing(facts, wanted))
    if replacing:
        _replace(host, facts, what, exact, driver.needs_driver(facts, wanted))
    else:
        _set_file(host, by_packages.PIN_FILE, driver.wanted_pin(facts, wanted))
    if wanted.persistenced:
        _must(
            host,
            ["systemctl", "enable", "--now", driver.PERSISTENCED_UNIT],
            UNIT_LIMIT_S,
            f"look at `journalctl -u {driver.PERSISTENCED_UNIT}`, or set "
            "nvidia_driver_persistenced: false.",
        )
    if replacing and facts.fabric.switches:
        _start_fabric(host, wanted.version)


def uninstall(host: Host, facts: driver.Facts) -> None:
    if facts.method == PACKAGES and facts.loaded:
        _refuse_holders(host)
    if facts.our_packages:
        daemons = (FABRIC_UNIT, driver.PERSISTENCED_UNIT)
        for unit in daemons if facts.method == PACKAGES else daemons[:1]:
            host.run(["systemctl", "disable", "--now", unit], timeout_s=UNIT_LIMIT_S)
    if facts.method == RUN and facts.uninstaller:
        _must(
            host,
            [driver.UNINSTALLER, "--silent"],
            INSTALL_LIMIT_S,
            "stop what uses the cards, then run it again.",
        )
    if facts.method == PACKAGES:
        _unload(host)
    _purge(host, facts.manager, facts.our_packages)
    for path in (by_packages.PIN_FILE, by_packages.SIGNING_FILE):
        host.remove(path)
    _set_bar(host, facts, False)
    records.write(host, driver.RECORD, {})


def prepare(host: Host, facts: driver.Facts, wanted: driver.Wanted) -> None:
    """An error where the packages can't be had: asked before pods are drained for the change."""
    if driver.needs_installer(facts, wanted) and not driver.waits_for_nouveau(facts):
        _resolve(host, facts.manager, _new(facts, wanted, ""))


def _note_waiting(host: Host, wanted: driver.Wanted, installer: str, due: bool) -> None:
    """What is left to do after a boot, for whoever takes it up; no record is begun for it where
    the driver is somebody else's."""
    record = records.read(host, driver.RECORD)
    waiting = {"wanted": {**wanted._asdict()}, "installer": installer} if due else None
    if record.get("waiting") != waiting and (record or driver.barred(host)):
        _note(host, waiting=waiting)


def observe(host: Host, wanted: driver.Wanted) -> driver.Facts:
    installed = packages.observe(host, host.read(packages.DPKG_STATUS) or "")
    return driver.observe(host, installed, wanted, system_of(host)[0])


def converge(
    host: Host,
    wanted: driver.Wanted,
    installer: str = "",
    state: str = "present",
    check: bool = False,
) -> dict[str, t.Any]:
    """The driver as it is wanted; what changed, what was left, and whether a reboot is due."""
    facts = observe(host, wanted)
    absent = state == "absent"
    decision = driver.plan_removal(facts) if absent else driver.plan(facts, wanted)
    if decision.action == BLOCKED:
        raise XpuError(f"The NVIDIA driver can't be installed: {decision.reason}.", "see above.")
    changed = decision.action != OK and state != "prepared"
    if state == "present" and driver.waits_for_nouveau(facts):
        changed = not facts.nouveau_barred or bool(facts.record.get("initramfs_due"))
    if state == "prepared" and not check:
        prepare(host, facts, wanted)
    if changed and not check:
        if absent:
            uninstall(host, facts)
        else:
            install(host, facts, wanted, installer)
    loaded = driver.loaded_version(host)
    if state == "present" and not check:
        _note_waiting(host, wanted, installer, loaded != wanted.version)
    left = [decision.reason] if absent and decision.action == OK and decision.reason else []
    return {
        "changed": changed,
        "left": left,
        "reboot_required": bool(loaded and facts.ours)
        if absent
        else loaded != wanted.version and not check and state != "prepared",
        "diff": {
            "before": describe(facts),
            "after": _predict(facts, wanted, absent) if changed else describe(facts),
        },
    }
