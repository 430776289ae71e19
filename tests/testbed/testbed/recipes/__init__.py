# SPDX-License-Identifier: GPL-3.0-or-later
"""What only tests need built: host images, Kubernetes, simulators; else like xpubuild.recipes."""
