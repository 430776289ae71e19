# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Does an image of some CUDA run on a host's driver? Versions in, a verdict with its reason out.

NVIDIA knows three ways: a driver as new as the toolkit (full), any driver of the major's floor
(minor-version compatibility), and the user-mode libraries of package cuda-compat in the image
(forward compatibility), which only data-centre cards accept. Source of the table: the release notes
of each CUDA toolkit ("CUDA Driver" table) and NVIDIA's "CUDA Compatibility" guide.
"""

from __future__ import annotations

import re
import typing as t

from ._decision import version_key
from ._errors import XpuError

# The driver that each toolkit shipped with, Linux x86_64: from it on everything in it works.
SHIPPED_WITH = {
    "11.0": "450.51.05",
    "11.1": "455.23",
    "11.2": "460.27.03",
    "11.3": "465.19.01",
    "11.4": "470.42.01",
    "11.5": "495.29.05",
    "11.6": "510.39.01",
    "11.7": "515.43.04",
    "11.8": "520.61.05",
    "12.0": "525.60.13",
    "12.1": "530.30.02",
    "12.2": "535.54.03",
    "12.3": "545.23.06",
    "12.4": "550.54.14",
    "12.5": "555.42.02",
    "12.6": "560.28.03",
    "12.8": "570.26",
    "12.9": "575.51.03",
    "13.0": "580.65.06",
    "13.1": "590.44.01",
}
# Any toolkit of the major runs from here on, without what newer drivers brought.
FLOOR = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
# Before it, NVIDIA's container toolkit puts an image's cuda-compat in place of the host's driver.
COMPAT_LEFT_ALONE_SINCE = "1.17.4"
CLASSES = ("datacenter", "workstation", "consumer")
_CUDA = re.compile(r"^(\d+\.\d+)(\.\d+)*$")
_VERSION = re.compile(r"^\d+(\.\d+)+$")


class Question(t.NamedTuple):
    """``cuda`` is the image's toolkit, ``compat`` whether it ships cuda-compat."""

    driver: str
    cuda: str
    gpu_class: str = "consumer"
    compat: bool = False
    toolkit: str = ""


class Answer(t.NamedTuple):
    """``verdict`` is full, minor, forward or fail; ``remedy`` is empty unless it is fail."""

    verdict: str
    reason: str
    remedy: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return self.verdict != "fail"


def _checked(question: Question) -> str:
    """The toolkit's row, or an error that names what was written and what is allowed."""
    if not _VERSION.match(question.driver):
        raise XpuError(
            f"driver {question.driver!r} is not a version such as 580.95.05",
            "give what `nvidia-smi --query-gpu=driver_version --format=csv,noheader` prints",
        )
    if question.toolkit and not _VERSION.match(question.toolkit):
        raise XpuError(
            f"toolkit {question.toolkit!r} is not a version such as 1.17.8",
            "give what `nvidia-ctk --version` prints",
        )
    if question.gpu_class not in CLASSES:
        raise XpuError(
            f"gpu_class {question.gpu_class!r} is none of {', '.join(CLASSES)}",
            "A100, H100, L4 and T4 are datacenter, RTX A and RTX PRO workstation, GeForce consumer",
        )
    match = _CUDA.match(question.cuda)
    if match is None or match[1] not in SHIPPED_WITH:
        raise XpuError(
            f"cuda {question.cuda!r} is not a toolkit in the table ({', '.join(SHIPPED_WITH)})",
            "give the image's CUDA_VERSION, or add the toolkit's row to _cuda_compat.py",
        )
    return match[1]


def _at_least(found: str, wanted: str) -> bool:
    return version_key(found) >= version_key(wanted)


def _shadowed(question: Question) -> bool:
    """The image's cuda-compat takes the host driver's place, wanted or not."""
    old = question.toolkit and not _at_least(question.toolkit, COMPAT_LEFT_ALONE_SINCE)
    return question.compat and bool(old)


def answer(question: Question) -> Answer:
    """Raises XpuError where the question itself makes no sense."""
    row = _checked(question)
    shipped, floor = SHIPPED_WITH[row], FLOOR[row.partition(".")[0]]
    driver, forward = question.driver, question.gpu_class == "datacenter"
    if _shadowed(question) and not forward and not _at_least(driver, shipped):
        return Answer(
            "fail",
            f"the image's cuda-compat replaces driver {driver} (container toolkit "
            f"{question.toolkit} does that, from {COMPAT_LEFT_ALONE_SINCE} on it doesn't), and a "
            f"{question.gpu_class} card refuses it (CUDA errors 803 and 804)",
            f"install container toolkit {COMPAT_LEFT_ALONE_SINCE} or newer, or driver {shipped} or "
            "newer, or an image without cuda-compat",
        )
    if _at_least(driver, shipped):
        return Answer(
            "full", f"driver {driver} is at least {shipped}, which CUDA {row} shipped with"
        )
    if _at_least(driver, floor):
        return Answer(
            "minor",
            f"driver {driver} is at least {floor}, the floor of CUDA {row.partition('.')[0]}",
            warnings=(
                f"driver {driver} does not compile PTX of CUDA {row}, and functions newer than it "
                f"answer with error 36; driver {shipped} has all",
            ),
        )
    if forward and question.compat:
        return Answer(
            "forward",
            f"driver {driver} is older than {floor}; the image's cuda-compat serves CUDA {row} on "
            "a data-centre card",
            warnings=(
                "the driver's branch must be one that this cuda-compat supports; see NVIDIA's "
                "table of CUDA compatibility",
            ),
        )
    way = "" if forward else f"; cuda-compat is no way on a {question.gpu_class} card"
    return Answer(
        "fail",
        f"CUDA {row} needs driver {floor} or newer, {driver} is older{way}",
        f"install driver {shipped} or newer, or take an image of CUDA {_newest_for(driver)}",
    )


def _newest_for(driver: str) -> str:
    """The newest toolkit that runs on *driver* without anything in the image."""
    fits = [row for row in SHIPPED_WITH if _at_least(driver, FLOOR[row.partition(".")[0]])]
    return f"{fits[-1]} or older" if fits else "older than 11.0"
