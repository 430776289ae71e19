# SPDX-License-Identifier: Apache-2.0
"""How the programs of ``native/`` (and what the testbed needs) are built, cached and listed."""
