# SPDX-License-Identifier: Apache-2.0
"""What the images hold and how they start; the device plugin's program that goes into one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from xpubuild import latebound, oci
from xpubuild.cache import Cache
from xpubuild.recipes import cluster, images, webhook
from xpubuild.toolchain import GLIBC_FLOOR


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name in (
        "gpu-device-plugin",
        "xpu-exporter",
        "xpu-webhook",
        "cuda-client-update",
        "xpu-runtime.tar.gz",
        "vc-scheduler",
        "vc-controller-manager",
        "load.py",
    ):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/huawei-xpu.so").write_text("plugin")
    (tmp_path / "conductor/site/syshax").mkdir(parents=True)
    (tmp_path / "conductor/site/syshax/cli.py").write_text("")
    (tmp_path / "conductor/syshax").write_text("program")
    return tmp_path


def every(programs: Path) -> list[images.Image]:
    return [
        images.device_plugin(programs),
        images.admission_webhook(programs),
        images.cuda_client_update(programs, programs / "xpu-runtime.tar.gz"),
        images.exporter(programs / "xpu-exporter"),
        images.scheduler(programs),
        images.controller_manager(programs),
        images.workload([programs / "load.py"]),
        images.conductor(programs / "conductor"),
    ]


def test_names_are_those_of_the_interfaces(programs: Path) -> None:
    assert [image.reference for image in every(programs)] == [
        "docker.io/library/gpu-device-plugin:v1.0",
        "docker.io/library/xpu-webhook:v1.0",
        "docker.io/library/cuda-client-update:v1.0",
        "docker.io/library/xpu-exporter:v1.0",
        "docker.io/library/vc-scheduler:v1.0",
        "docker.io/library/vc-controller-manager:v1.0",
        "docker.io/library/xpu-workload:v1.0",
        "docker.io/library/syshax-conductor:v1.0",
    ]
    for image in every(programs):
        oci.check_reference(image.reference)


def test_an_entry_point_is_a_file_of_its_image(programs: Path) -> None:
    for image in every(programs)[:4]:
        assert image.config.entrypoint[0] in image.files


def test_the_webhook_is_alone_and_nobody(programs: Path) -> None:
    image = images.admission_webhook(programs)
    assert list(image.files) == ["/xpu-webhook"]
    assert not image.on_debian
    assert image.config.user.split(":")[0].isdigit()
    assert image.config.user != "0:0"


def test_the_scheduler_looks_where_the_plugin_lies(programs: Path) -> None:
    image = images.scheduler(programs)
    assert "--plugins-dir=/plugins" in image.config.entrypoint
    assert "/plugins/huawei-xpu.so" in image.files


def test_the_workload_asks_for_every_card_as_cuda_images_do(programs: Path) -> None:
    assert images.workload([programs / "load.py"]).config.env["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_one_changed_program_rebuilds_one_image(programs: Path, tmp_path: Path) -> None:
    base = tmp_path / "base" / "rootfs.tar"
    base.parent.mkdir()
    oci.layer(base, {"/etc/os": b"x"})
    cache = Cache(tmp_path / "cache")
    before = [images._archive(cache, base, image) for image in every(programs)]
    (programs / "vc-scheduler").write_text("changed")
    after = [images._archive(cache, base, image) for image in every(programs)]
    names = [image.name for image in every(programs)]
    built = [
        name for name, old, new in zip(names, before, after, strict=True) if old.name != new.name
    ]
    assert built == ["vc-scheduler"]


def test_the_webhook_needs_no_system_around_it() -> None:
    program = (webhook.build(Cache()) / "xpu-webhook").read_bytes()
    assert b"ld-linux" not in program


def test_every_driver_function_is_weak() -> None:
    text = "nvmlReturn_t nvmlInit_v2(void); CUresult cuInit(int f); int curl_init(void);"
    assert latebound.weak_header([text]) == "#pragma weak cuInit\n#pragma weak nvmlInit_v2\n"


def test_the_device_plugin_runs_on_the_oldest_glibc() -> None:
    program = (cluster.build(Cache()) / "gpu-device-plugin").read_bytes()
    needed = {
        tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_(\d+(?:\.\d+)+)\0", program)
    }
    assert needed
    assert max(needed) <= tuple(map(int, GLIBC_FLOOR.split(".")))
