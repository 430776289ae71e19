# SPDX-License-Identifier: GPL-3.0-or-later
"""What a program sees through libdcmi, as one JSON object; the ctypes follow the public header."""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import POINTER, byref, c_char, c_int, c_ubyte, c_uint, c_ulong, c_ulonglong

TEXT = c_ubyte * 32


class Chip(ctypes.Structure):
    _fields_ = [("type", TEXT), ("name", TEXT), ("ver", TEXT), ("aicore_cnt", c_uint)]


class Die(ctypes.Structure):
    _fields_ = [("soc_die", c_uint * 5)]


class Hbm(ctypes.Structure):
    _fields_ = [
        ("memory_size", c_ulonglong),
        ("freq", c_uint),
        ("memory_usage", c_ulonglong),
        ("temp", c_int),
        ("bandwith_util_rate", c_uint),
    ]


class Memory(ctypes.Structure):
    _fields_ = [
        ("memory_size", c_ulonglong),
        ("memory_available", c_ulonglong),
        ("freq", c_uint),
        ("hugepagesize", c_ulong),
        ("hugepages_total", c_ulong),
        ("hugepages_free", c_ulong),
        ("utiliza", c_uint),
        ("reserve", c_ubyte * 60),
    ]


class Process(ctypes.Structure):
    _fields_ = [("proc_id", c_int), ("proc_mem_usage", c_ulong)]


def text(field: ctypes.Array[c_ubyte]) -> str:
    return bytes(field).partition(b"\0")[0].decode()


def look(card: int) -> dict[str, object]:
    """Everything about one card."""
    lib = ctypes.CDLL("libdcmi.so")
    before = lib.dcmi_get_card_list(byref(c_int()), (c_int * 16)(), 16)
    init = lib.dcmi_init()
    count, cards = c_int(), (c_int * 16)()
    listed = lib.dcmi_get_card_list(byref(count), cards, 16)
    chip, die, hbm, memory = Chip(), Die(), Hbm(), Memory()
    devices, health, busy, running = c_int(), c_uint(), c_uint(), c_int()
    processes = (Process * 32)()
    version = (c_char * 64)()
    codes = {
        "before_init": before,
        "init": init,
        "card_list": listed,
        "num_in_card": lib.dcmi_get_device_num_in_card(card, byref(devices)),
        "chip": lib.dcmi_get_device_chip_info(card, 0, byref(chip)),
        "die": lib.dcmi_get_device_die_v2(card, 0, 1, byref(die)),
        "health": lib.dcmi_get_device_health(card, 0, byref(health)),
        "hbm": lib.dcmi_get_device_hbm_info(card, 0, byref(hbm)),
        "memory": lib.dcmi_get_device_memory_info_v3(card, 0, byref(memory)),
        "rate": lib.dcmi_get_device_utilization_rate(card, 0, 2, byref(busy)),
        "resource": lib.dcmi_get_device_resource_info(card, 0, processes, byref(running)),
        "version": lib.dcmi_get_driver_version(version, 64),
        "no_such_device": lib.dcmi_get_device_health(card, 7, byref(health)),
        "no_pointer": lib.dcmi_get_device_health(card, 0, POINTER(c_uint)()),
    }
    return {
        "codes": codes,
        "cards": list(cards[: count.value]),
        "chip": {"type": text(chip.type), "name": text(chip.name), "aicore": chip.aicore_cnt},
        "die": "-".join(f"{word:08X}" for word in die.soc_die),
        "hbm": {"size": hbm.memory_size, "usage": hbm.memory_usage},
        "memory": {"size": memory.memory_size, "available": memory.memory_available},
        "busy": busy.value,
        "health": health.value,
        "processes": {one.proc_id: one.proc_mem_usage for one in list(processes)[: running.value]},
        "version": version.value.decode(),
    }


if __name__ == "__main__":
    print(json.dumps(look(int(sys.argv[1]))))
