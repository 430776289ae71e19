# SPDX-License-Identifier: Apache-2.0
"""Errors as OpenAI's clients expect them: one object with message, type, param and code."""

from __future__ import annotations

import json
from typing import NamedTuple


class Problem(NamedTuple):
    """Why a request is not answered. ``retry_after`` is in seconds, for 429 and 503."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None

    @property
    def kind(self) -> str:
        """OpenAI's ``type``; clients tell by it whose fault it was."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> bytes:
        """The error object as JSON."""
        return json.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.code,
                }
            },
            ensure_ascii=False,
        ).encode()


def is_error_object(body: bytes) -> bool:
    """Whether *body* already is an error that an OpenAI client understands.

    vLLM before 0.10 wrote the object bare, with ``"object": "error"``.
    """
    try:
        document = json.loads(body)
    except ValueError:
        return False
    if not isinstance(document, dict):
        return False
    return isinstance(document.get("error"), dict) or document.get("object") == "error"
