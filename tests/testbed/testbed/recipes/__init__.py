# SPDX-License-Identifier: GPL-3.0-or-later
"""What only tests need built: host images, Kubernetes, simulators. Same shape as xpubuild.recipes."""
