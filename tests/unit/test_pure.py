# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure logic of the node path: input → wanted, whole texts compared."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _artefacts as artefacts
from ansible_collections.flexai.xpu.plugins.module_utils import _container_toolkit as toolkit
from ansible_collections.flexai.xpu.plugins.module_utils import _containerd as containerd
from ansible_collections.flexai.xpu.plugins.module_utils import _images as images
from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_driver as driver
from ansible_collections.flexai.xpu.plugins.module_utils import _site as site
from ansible_collections.flexai.xpu.plugins.module_utils import _verdict as verdict
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._packages import Packages, from_dpkg

from . import hostroot

DUMP = (hostroot.FIXTURES / "containerd-1.6-dump.toml").read_text()
BASIS = "0" * 64

# -- driver ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "kind", "wanted"),
    [
        ("535.183.06", "", []),
        ("535.183.06", "open", ["-m=kernel-open"]),
        ("535.183.06", "proprietary", []),
        ("580.95.05", "", ["--kernel-module-type=open"]),
        ("580.95.05", "proprietary", ["--kernel-module-type=proprietary"]),
        ("470.256.02", "open", []),
    ],
)
def test_the_installer_gets_only_flags_that_it_knows(
    version: str, kind: str, wanted: list[str]
) -> None:
    flags = driver.installer_flags(driver.Wanted(version, kind), kind)
    assert flags == [*driver.BASE_FLAGS, *wanted]


# -- toolkit configuration -------------------------------------------------------------------

UPSTREAM = """\
#accept-nvidia-visible-devices-as-volume-mounts = false
#accept-nvidia-visible-devices-envvar-when-unprivileged = true
disable-require = false

[nvidia-container-cli]
#debug = "/var/log/x.log"
mode = "not ours"

[nvidia-container-runtime]
log-level = "info"
mode = "legacy"

[nvidia-container-runtime.modes.cdi]
default-kind = "nvidia.com/gpu"
"""


def test_settings_take_the_place_of_upstreams_lines_and_nothing_else_moves() -> None:
    wanted = toolkit.Wanted("1.17.8").settings()
    text = toolkit.write_settings(UPSTREAM, wanted)
    assert text == UPSTREAM.replace(
        "#accept-nvidia-visible-devices-as-volume-mounts = false",
        "accept-nvidia-visible-devices-as-volume-mounts = true",
    ).replace(
        "#accept-nvidia-visible-devices-envvar-when-unprivileged = true",
        "accept-nvidia-visible-devices-envvar-when-unprivileged = false",
    ).replace('mode = "legacy"', 'mode = "auto"')
    assert toolkit.write_settings(text, wanted) == text


def test_settings_of_an_empty_file() -> None:
    text = toolkit.write_settings("", toolkit.Wanted("1.17.8").settings())
    assert text == (
        "accept-nvidia-visible-devices-as-volume-mounts = true\n"
        "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n"
        "\n"
        "[nvidia-container-runtime]\n"
        'mode = "auto"\n'
    )


def test_packages_that_are_only_half_installed_do_not_count() -> None:
    status = hostroot.package("nvidia-container-toolkit", "1.17.8-1").replace(
        "install ok installed", "install ok half-configured"
    ) + hostroot.package("libnvidia-container1", "1.17.8-1")
    found = toolkit.installed_packages(Packages("dpkg", from_dpkg(status, ("nvidia",))))
    assert found == {"libnvidia-container1": "1.17.8"}


@pytest.mark.parametrize(
    ("manager", "folder", "file"),
    [
        ("dpkg", "ubuntu18.04/amd64", "{}_1.17.8-1_amd64.deb"),
        ("rpm", "centos7/x86_64", "{}-1.17.8-1.x86_64.rpm"),
    ],
)
def test_a_release_tarball_has_five_packages_of_a_manager_and_an_architecture(
    manager: str, folder: str, file: str
) -> None:
    there = [f"release-v1.17.8-stable/packages/{folder}/{file.format(n)}" for n in toolkit.PACKAGES]
    other = [path.replace("amd64", "arm64").replace("x86_64", "aarch64") for path in there]
    more = [there[0].replace("container1", "container-devel")]
    chosen = toolkit.choose_packages([*other, *more, *there], manager, "x86_64")
    assert chosen == dict(zip(toolkit.PACKAGES, there, strict=True))
    (wrong,) = {"dpkg", "rpm"} - {manager}
    assert toolkit.choose_packages(there, wrong, "x86_64") == {}


# -- containerd ------------------------------------------------------------------------------


def test_the_drop_in_differs_from_the_base_by_our_runtimes_only() -> None:
    text = containerd.render(DUMP, BASIS)
    base = {name: lines for name, lines in containerd.tables(DUMP) if name[:1] == ("plugins",)}
    rendered = {name: lines for name, lines in containerd.tables(text) if name[:1] == ("plugins",)}
    cri = "io.containerd.grpc.v1.cri"
    added = set(rendered) - set(base)
    assert {name[4] for name in added} == {"nvidia", "nvidia-cdi"}
    kept = {name: lines for name, lines in base.items() if name[1:2] == (cri,)}
    assert {name: rendered[name] for name in kept} == kept


def test_our_runtimes_are_the_sites_runc_with_another_program() -> None:
    rendered = dict(containerd.tables(containerd.render(DUMP, BASIS)))
    prefix = ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes", "nvidia-cdi")
    options = [line.strip() for line in rendered[(*prefix, "options")][1:]]
    assert sorted(options) == [
        'BinaryName = "/usr/bin/nvidia-container-runtime.cdi"',
        "SystemdCgroup = true",
    ]
    assert 'runtime_type = "io.containerd.runc.v2"' in [line.strip() for line in rendered[prefix]]


def test_rendering_a_base_that_holds_our_runtimes_already_changes_nothing() -> None:
    text = containerd.render(DUMP, BASIS)
    assert containerd.render(text, BASIS) == text


def test_format_version_3_uses_its_own_plugin() -> None:
    dump = DUMP.replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime").replace(
        "version = 2", "version = 3"
    )
    text = containerd.render(dump, BASIS)
    assert "version = 3" in text
    assert '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia-cdi.options]' in text


def test_a_base_without_runc_is_refused_with_the_table_to_define() -> None:
    with pytest.raises(XpuError) as error:
        containerd.render("version = 2\n", BASIS)
    assert error.value.remedy == (
        'define [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options] in '
        "/etc/containerd/config.toml."
    )


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("", f'version = 2\nimports = ["{containerd.DROP_IN}"]\n'),
        ("version = 2\n", f'version = 2\nimports = ["{containerd.DROP_IN}"]\n'),
        (
            'version = 2\nimports = ["conf.d/*.toml"]\n',
            'version = 2\nimports = ["conf.d/*.toml"]\n',
        ),
        (
            'version = 2\nimports = [\n  "/a.toml",\n]\n[plugins]\n',
            f'version = 2\nimports = ["/a.toml", "{containerd.DROP_IN}"]\n[plugins]\n',
        ),
        (
            'version = 2\n[x]\nimports = ["/etc/containerd/conf.d/*.toml"]\n',
            f'version = 2\nimports = ["{containerd.DROP_IN}"]\n[x]\n'
            'imports = ["/etc/containerd/conf.d/*.toml"]\n',
        ),
    ],
)
def test_the_import_is_added_only_where_none_covers_the_drop_in(config: str, wanted: str) -> None:
    assert containerd.importing_us(config) == wanted
    assert containerd.importing_us(wanted) == wanted


# -- images ----------------------------------------------------------------------------------


def test_ctr_list() -> None:
    text = (
        "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
        "docker.io/library/a:v1 application/vnd.oci.image.manifest.v1+json sha256:aa 1 MiB l/a -\n"
        "sha256:bb application/vnd.oci.image.manifest.v1+json sha256:bb 1.0 MiB l/a -\n"
    )
    assert images.parse_ctr_list(text) == {"docker.io/library/a:v1": "sha256:aa"}


# -- artefacts -------------------------------------------------------------------------------


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "name": "xpu-runtime",
        "version": "0.1.0",
        "arch": "x86_64",
        "kind": "tarball",
        "file": "x.tar",
        "source": "x.tar",
        "sha256": "a" * 64,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sha256": "abc"}, "artefact xpu-runtime has sha256 'abc', not 64 lower-case hex digits."),
        (
            {"kind": "zip"},
            "artefact xpu-runtime has kind 'zip', not one of run, tarball, image, chart, binary.",
        ),
        (
            {"arch": "amd64"},
            "artefact xpu-runtime has arch 'amd64', not one of x86_64, aarch64, noarch.",
        ),
        ({"file": "../x"}, "artefact xpu-runtime has file '../x', not a plain file name."),
        ({"source": ""}, "artefact xpu-runtime lacks source."),
        ({"url": "x"}, "artefact xpu-runtime has unknown keys url."),
        ({"kind": "image"}, "artefact xpu-runtime is an image without image and image_digest."),
    ],
)
def test_a_faulty_entry_is_named_with_what_was_found(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(XpuError) as error:
        artefacts.parse({"version": 1, "artefacts": [entry(**changes)]}, "m.yml")
    assert error.value.msg == f"m.yml: {text}"


def test_an_entry_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(XpuError, match=r"artefact xpu-runtime 0\.1\.0 x86_64 stands there twice"):
        artefacts.parse({"version": 1, "artefacts": [entry(), entry()]}, "m.yml")


def test_a_version_that_is_not_there_is_told_with_those_that_are() -> None:
    found = artefacts.parse({"version": 1, "artefacts": [entry()]}, "m.yml")
    with pytest.raises(XpuError) as error:
        artefacts.require(found, "xpu-runtime", "9", "m.yml")
    assert error.value.msg == "m.yml has no artefact xpu-runtime 9; it has 0.1.0."


def test_the_architecture_of_the_host_chooses() -> None:
    entries = [entry(), entry(arch="aarch64", sha256="b" * 64)]
    found = artefacts.parse({"version": 1, "artefacts": entries}, "m.yml")
    assert artefacts.for_architecture(found, "aarch64").sha256 == "b" * 64
    with pytest.raises(XpuError, match="is there for x86_64, aarch64, not for riscv64"):
        artefacts.for_architecture(found, "riscv64")


def test_a_wrong_digest_names_file_found_and_expected() -> None:
    with pytest.raises(XpuError) as error:
        artefacts.check_digest("driver.run", "1" * 64, "2" * 64)
    assert error.value.msg == (f"driver.run has SHA-256 {'1' * 64}, the manifest says {'2' * 64}.")


# -- what a site wrote -----------------------------------------------------------------------


def test_a_misspelt_variable_is_told_with_the_nearest() -> None:
    known = {"nvidia_driver_version", "flexai_site"}
    names = ["nvidia_driver_verion", "flexai_zzz", "other_thing", "nvidia_driver_version"]
    assert site.unknown_variables(names, known, ("nvidia_driver_", "flexai_")) == {
        "flexai_zzz": "",
        "nvidia_driver_verion": "nvidia_driver_version",
    }


def values(**changes: Any) -> dict[str, Any]:
    return {
        "flexai_profile": "supported",
        "nvidia_driver_version": "580.95.05",
        "nvidia_driver_kernel_module_type": "",
        "container_toolkit_version": "1.17.8",
        "container_toolkit_accept_envvar_unprivileged": False,
        **changes,
    }


ESCAPE_2024_0132 = (
    "CVE-2024-0132 (mended in 1.16.2: an image reaches the host's file system while its container "
    "is set up)"
)
ESCAPE_2025_23359 = "CVE-2025-23359 (mended in 1.17.4: a way round the mending of CVE-2024-0132)"
ESCAPE_2025_23266 = (
    "CVE-2025-23266 (mended in 1.17.8: an image's own library is loaded by a hook that runs as "
    "root on the host)"
)
COMPAT = (
    "an image that ships cuda-compat gets its own libcuda in place of the host's under runtime "
    "nvidia (mended in 1.17.4)"
)
OLD_BRANCH = "driver branches before 550 get no security fixes any more (535 until June 2026)"
NO_CUDA_13 = "programs built with CUDA 13 don't run on it (they do from 580.65.06 on)"
ACCEPT = "or accept this with flexai_profile: documents"
DOCUMENTS = {
    "flexai_profile": "documents",
    "nvidia_driver_version": "535.183.06",
    "container_toolkit_version": "1.16.1",
}

REFUSALS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "what the roles take by themselves": ({}, []),
    "document 000's versions under its own profile": (DOCUMENTS, []),
    "document 000's toolkit": (
        {"container_toolkit_version": "1.16.1"},
        [
            f"container_toolkit_version 1.16.1: {ESCAPE_2024_0132}; {ESCAPE_2025_23359}; {COMPAT}; "
            f"{ESCAPE_2025_23266}. Remedy: take 1.17.8 or newer, {ACCEPT}."
        ],
    ),
    "the last toolkit with the second escape": (
        {"container_toolkit_version": "1.17.3"},
        [
            f"container_toolkit_version 1.17.3: {ESCAPE_2025_23359}; {COMPAT}; "
            f"{ESCAPE_2025_23266}. Remedy: take 1.17.8 or newer, {ACCEPT}."
        ],
    ),
    "a toolkit with the third escape only": (
        {"container_toolkit_version": "1.17.4"},
        [
            f"container_toolkit_version 1.17.4: {ESCAPE_2025_23266}. Remedy: take 1.17.8 or "
            f"newer, {ACCEPT}."
        ],
    ),
    "document 000's driver": (
        {"nvidia_driver_version": "535.183.06"},
        [f"nvidia_driver_version 535.183.06: {OLD_BRANCH}. Remedy: take 550 or newer, {ACCEPT}."],
    ),
    "the first driver branch that is taken": ({"nvidia_driver_version": "550.54.14"}, []),
    "no profile excuses a toolkit that can't do the work": (
        {**DOCUMENTS, "container_toolkit_version": "1.12.1"},
        [
            "container_toolkit_version 1.12.1: it lacks the CDI handler that slices run on. "
            "Remedy: take 1.13.0 or newer."
        ],
    ),
    "an open module for a driver that has none": (
        {
            **DOCUMENTS,
            "nvidia_driver_version": "470.256.02",
            "nvidia_driver_kernel_module_type": "open",
        },
        [
            "nvidia_driver_kernel_module_type open: driver 470.256.02 has no open module. Remedy: "
            "take nvidia_driver_version 515 or newer, or nvidia_driver_kernel_module_type: "
            "proprietary."
        ],
    ),
    "both at once, each with its own line": (
        {"container_toolkit_version": "1.17.4", "nvidia_driver_version": "470.256.02"},
        [
            f"container_toolkit_version 1.17.4: {ESCAPE_2025_23266}. Remedy: take 1.17.8 or "
            f"newer, {ACCEPT}.",
            f"nvidia_driver_version 470.256.02: {OLD_BRANCH}. Remedy: take 550 or newer, {ACCEPT}.",
        ],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_versions_that_contradict_are_refused_with_reason_and_remedy(case: str) -> None:
    changes, wanted = REFUSALS[case]
    assert site.contradictions(values(**changes)) == wanted


DANGERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "what the roles take by themselves": ({}, []),
    "document 000's versions": (
        DOCUMENTS,
        [
            f"container_toolkit_version 1.16.1: {ESCAPE_2024_0132}; {ESCAPE_2025_23359}; {COMPAT}; "
            f"{ESCAPE_2025_23266}. Taken because of flexai_profile: documents; 1.17.8 or newer is "
            "without.",
            f"nvidia_driver_version 535.183.06: {OLD_BRANCH}; {NO_CUDA_13}. Taken because of "
            "flexai_profile: documents; 580.65.06 or newer is without.",
        ],
    ),
    "profile documents with new versions": ({"flexai_profile": "documents"}, []),
    "a driver that is taken under every profile": (
        {"nvidia_driver_version": "570.172.08"},
        [f"nvidia_driver_version 570.172.08: {NO_CUDA_13}. 580.65.06 or newer is without."],
    ),
    "every image may ask for cards": (
        {"container_toolkit_accept_envvar_unprivileged": True},
        [
            "container_toolkit_accept_envvar_unprivileged true: any pod whose image or "
            "specification sets NVIDIA_VISIBLE_DEVICES sees every card of its host, slice or "
            "none."
        ],
    ),
}


@pytest.mark.parametrize("case", DANGERS)
def test_dangers_of_what_is_taken_all_the_same_are_named(case: str) -> None:
    changes, wanted = DANGERS[case]
    assert site.dangers(values(**changes)) == wanted


def test_two_names_for_one_address() -> None:
    addresses = {"gpu1": "10.0.0.1", "gpu2": "10.0.0.2", "old": "10.0.0.1"}
    assert site.duplicates(addresses) == ["gpu1 and old are both 10.0.0.1"]


def test_hosts_that_stop_a_run_are_all_named() -> None:
    probes: dict[str, dict[str, Any]] = {
        "a": {"unreachable": True, "msg": "Connection refused\nmore"},
        "b": {"failed": True, "msg": "no Python"},
        "c": {"plan": [{"component": "images", "action": "blocked", "reason": "because"}]},
        "d": {"plan": [{"component": "images", "action": "ok", "reason": ""}]},
    }
    assert site.plan_faults(probes) == [
        "a is unreachable (Connection refused). Remedy: bring it up and check its address and "
        "credentials, or leave it out with --limit.",
        "b could not be looked at: no Python",
        "c: images is blocked: because.",
    ]


# -- verdict ---------------------------------------------------------------------------------


def node(name: str, state: str) -> verdict.Node:
    return verdict.build(name, [verdict.Component("images", "3 images", "3 images", state, "why")])


@pytest.mark.parametrize("state", verdict.COMPONENT_STATES)
def test_only_ok_and_changed_are_ready(state: str) -> None:
    assert node("a", state)["ready"] == (state in ("ok", "changed"))


def test_a_site_is_ready_when_all_nodes_are_and_there_are_some() -> None:
    assert not verdict.merge("s", "d", [])["ready"]
    assert not verdict.build("a", [])["ready"]
    assert verdict.merge("s", "d", [node("b", "ok"), node("a", "changed")]) == {
        "site": "s",
        "date": "d",
        "ready": True,
        "nodes": [node("a", "changed"), node("b", "ok")],
    }
    assert not verdict.merge("s", "d", [node("b", "ok"), node("a", "failed")])["ready"]


def test_a_state_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'fine' is none of"):
        verdict.Component("x", "", "", "fine")


def test_table() -> None:
    assert verdict.table([node("gpu1", "ok")]) == [
        "node  component  wanted    found     state  reason",
        "gpu1  images     3 images  3 images  ok     why",
    ]
