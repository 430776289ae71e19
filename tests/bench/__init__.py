# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmarks: each compares in one run, prints its method and machine, and writes a report."""
