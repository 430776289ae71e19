# SPDX-License-Identifier: Apache-2.0
"""``python -m syshax`` is the program ``syshax``."""

import sys

from .cli import main

sys.exit(main())
