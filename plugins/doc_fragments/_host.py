# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  root:
    description:
      - Root directory of the host. Anything else than V(/) is for tests and benchmarks;
        services are then left alone, and only programs below it run.
    type: path
    default: /
"""

    ATTRIBUTES = r"""
attributes:
  check_mode:
    description: Can run in C(check_mode) and predict what it would change, without changing it.
    support: full
  diff_mode:
    description: Shows the text that it changes or would change.
    support: full
  idempotent:
    description: A second run with the same options changes nothing.
    support: full
"""

    ATTRIBUTES_INFO = r"""
attributes:
  check_mode:
    description: Can run in C(check_mode); it changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show, since nothing is changed.
    support: N/A
  idempotent:
    description: A second run with the same options changes nothing.
    support: full
"""
