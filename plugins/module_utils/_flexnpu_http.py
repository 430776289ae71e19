# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Requests to flexnpud over HTTP; what they mean is _flexnpu's business."""

from __future__ import annotations

import json
import typing as t
from urllib.error import HTTPError, URLError

from ansible.module_utils.urls import open_url

from ._errors import XpuError
from ._flexnpu import Send

LIMIT_S = 20


class NobodyThere(XpuError):
    """Nothing answers at the daemon's address."""


def sender(url: str, token: str) -> Send:
    """What sends to the daemon at *url*; an empty *token* sends none."""
    headers = {"Content-Type": "application/json"}
    if token.strip():
        headers["Authorization"] = f"Bearer {token.strip()}"

    def send(method: str, path: str, body: t.Mapping[str, t.Any] | None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body)
        try:
            with open_url(
                url.rstrip("/") + path,
                method=method,
                data=data,
                headers=headers,
                timeout=LIMIT_S,
                use_proxy=False,
            ) as answer:
                return answer.getcode(), answer.read().decode("utf-8", "replace")
        except HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")
        except (URLError, OSError) as error:
            raise NobodyThere(
                f"flexnpud does not answer at {url}: {getattr(error, 'reason', error)}.",
                "start it (`systemctl start flexnpud`, or ./flexnpud), or correct url; its log is "
                "flexnpud.log.",
            ) from error

    return send
