# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints what NVML says of card 0 and its MIG instances, as JSON."""

from __future__ import annotations

import json
from ctypes import CDLL, byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p, create_string_buffer
from typing import Any

MIB = 1 << 20


class Nvml:
    """The library, in this process."""

    def __init__(self) -> None:
        self.library = CDLL("libnvidia-ml.so.1")
        assert self.library.nvmlInit_v2() == 0

    def __call__(self, name: str, device: c_void_p, *more: Any) -> int:
        code: int = getattr(self.library, f"nvmlDevice{name}")(device, *more)
        return code

    def number(self, name: str, device: c_void_p) -> int:
        """What a question for one number gives; minus its error."""
        value = c_uint()
        code = self(name, device, byref(value))
        return -code if code else value.value

    def text(self, name: str, device: c_void_p) -> str:
        value = create_string_buffer(96)
        assert self(name, device, value, c_uint(96)) == 0
        return value.value.decode()


def look() -> dict[str, Any]:
    """What NVML says of card 0 and its instances."""
    nvml = Nvml()
    card, mode, pending, count = c_void_p(), c_uint(), c_uint(), c_uint()
    nvml.library.nvmlDeviceGetCount_v2(byref(count))
    nvml.library.nvmlDeviceGetHandleByIndex_v2(c_uint(0), byref(card))
    instances: list[dict[str, Any]] = []
    said: dict[str, Any] = {
        "cards": count.value,
        "mode": [nvml("GetMigMode", card, byref(mode), byref(pending)), mode.value, pending.value],
        "most": nvml.number("GetMaxMigDeviceCount", card),
        "busy": nvml("GetUtilizationRates", card, byref((c_uint * 2)())),
        "instances": instances,
    }
    for place in range(7):
        instance = c_void_p()
        code = nvml("GetMigDeviceHandleByIndex", card, c_uint(place), byref(instance))
        if code:
            said["end"] = code
            break
        instances.append(describe(nvml, card, instance))
    return said


def describe(nvml: Nvml, card: c_void_p, instance: c_void_p) -> dict[str, Any]:
    memory, whole, again = (c_ulonglong * 3)(), c_void_p(), c_void_p()
    attributes = (c_uint * 16)()
    uuid = nvml.text("GetUUID", instance)
    assert nvml("GetMemoryInfo", instance, byref(memory)) == 0
    assert nvml("GetDeviceHandleFromMigDeviceHandle", instance, byref(whole)) == 0
    assert nvml("GetAttributes_v2", instance, byref(attributes)) == 0
    assert nvml.library.nvmlDeviceGetHandleByUUID(c_char_p(uuid.encode()), byref(again)) == 0
    count = c_uint(0)
    return {
        "uuid": uuid,
        "name": nvml.text("GetName", instance),
        "mib": memory[0] // MIB,
        "used": memory[2] > 0,
        "ids": [nvml.number(f"Get{which}InstanceId", instance) for which in ("Gpu", "Compute")],
        "is": nvml.number("IsMigDeviceHandle", instance),
        "slices": attributes[7],
        "same": [whole.value == card.value, again.value == instance.value],
        "samples": nvml("GetProcessUtilization", instance, None, byref(count), c_ulonglong(0)),
        "minor": nvml("GetMinorNumber", instance, byref(c_uint())),
        "events": nvml("RegisterEvents", instance, c_ulonglong(8), byref(c_int())),
    }


if __name__ == "__main__":
    print(json.dumps(look()))
