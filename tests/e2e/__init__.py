# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, end to end: from bare hosts to a pod on a 20 % slice."""
