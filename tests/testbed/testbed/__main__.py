# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m testbed``."""

import sys

from .cli import main

sys.exit(main())
