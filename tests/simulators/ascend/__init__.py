# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated Ascend: DCMI, npu-smi, the daemon that keeps the chips, and the vendor's installers."""
