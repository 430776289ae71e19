# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw-away machines for tests: systemd hosts in containers, simulated cards, Kubernetes."""
