# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine, as long as it can be reached: what a host answers is lost once a file says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
name: lossy
short_description: the local connection, until it breaks
description: For tests. The host is gone when the file that E(LOSSY_MARK) names is there.
author: flexai.xpu contributors (@flexai-xpu)
extends_documentation_fragment: connection_pipelining
"""


class Connection(Local):  # type: ignore[misc]
    transport = "lossy"

    def exec_command(self, *arguments: Any, **more: Any) -> Any:
        answer = super().exec_command(*arguments, **more)
        if Path(os.environ["LOSSY_MARK"]).exists():
            raise AnsibleConnectionFailure("the host went away in the middle")
        return answer
