# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated Ascend ``.run`` packages: driver, firmware, and CANN's toolkit, kernels and nnal."""
