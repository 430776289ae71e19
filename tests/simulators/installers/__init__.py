# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for the files that NVIDIA lets a site download; see README.md."""
