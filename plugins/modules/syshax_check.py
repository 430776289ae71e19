# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: syshax_check
short_description: Prove by the engines' counters that sysHAX hands requests over
version_added: 0.1.0
description:
  - Sends one streamed chat call through the conductor, which is told to split it, and reads what
    both engines counted meanwhile.
  - An answer alone proves nothing. An engine that got no blocks computes the prompt itself, and a
    conductor that lost an engine lets the other do everything.
  - Other requests at the same time are counted too, so ask before users do, or while few do.
options:
  conductor:
    description: The conductor's address.
    type: str
    default: http://127.0.0.1:8010
  gpu:
    description: The address of the accelerator's engine.
    type: str
    default: http://127.0.0.1:8001
  cpu:
    description: The address of the CPU's engine.
    type: str
    default: http://127.0.0.1:8002
  model:
    description: The model's name, as it is served.
    type: str
    required: true
  prompt:
    description:
      - What is asked. Engines hand over whole blocks only, so a prompt of less than one block
        can't be handed over; it is repeated up to O(prompt_chars).
    type: str
    default: 介绍一下openEuler。
  prompt_chars:
    description: How long the prompt is at least.
    type: int
    default: 1000
  max_tokens:
    description: How many tokens are asked for.
    type: int
    default: 16
  timeout:
    description: Seconds that the call may take.
    type: int
    default: 120
  api_key:
    description: A key of the conductor, where it wants one.
    type: str
  require_handoff:
    description:
      - Whether anything less than a hand-off fails. V(false) fails only where no full answer came.
    type: bool
    default: true
extends_documentation_fragment:
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Prove that the accelerator prefills and the CPU decodes
  flexai.xpu.syshax_check:
    model: ds-32b
"""

RETURN = r"""
state:
  description:
    - V(proven) where the decoding engine's counter of transfers rose.
    - V(likely) where it has none, and the prompt was computed on one side only.
    - V(one-sided) where one engine did everything, or both everything.
    - V(broken) where no full answer came.
  returned: success
  type: str
reason:
  description: The counts that say so.
  returned: success
  type: str
route:
  description: The engines that the conductor named.
  returned: success
  type: str
"""

import json
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ..module_utils import _syshax_proof as proof
from ..module_utils._errors import XpuError, run_module

# Counters are written after the answer, by another process of the engine.
SETTLE_S = 10.0


def _get(url: str, timeout: float) -> str:
    with open_url(url, timeout=timeout, use_proxy=False) as answer:
        return str(answer.read().decode("utf-8", "replace"))


def _counters(url: str, timeout: float) -> proof.Counters:
    try:
        return proof.read_counters(_get(f"{url}/metrics", timeout))
    except OSError as error:
        raise XpuError(
            f"{url}/metrics can't be read ({error}).",
            "see that the engine runs (`systemctl status syshax-gpu syshax-cpu`).",
        ) from error


def _ask(params: t.Mapping[str, t.Any], way: str) -> proof.Answer:
    text = str(params["prompt"])
    text = text * max(1, -(-int(params["prompt_chars"]) // max(1, len(text))))
    body = {
        "model": params["model"],
        # What was asked before is in a cache, and proves nothing.
        "messages": [{"role": "user", "content": f"{time.time_ns()} {text}"}],
        "stream": True,
        "max_tokens": params["max_tokens"],
    }
    headers = {"Content-Type": "application/json"}
    if params["api_key"]:
        headers["Authorization"] = f"Bearer {params['api_key']}"
    url = f"{params['conductor']}/v1/chat/{way}"
    try:
        with open_url(
            url,
            data=json.dumps(body),
            headers=headers,
            method="POST",
            timeout=params["timeout"],
            use_proxy=False,
        ) as answer:
            route = answer.headers.get("x-syshax-route", "")
            said = answer.read().decode("utf-8", "replace")
            return proof.read_stream(answer.status, route, said)
    except OSError as error:  # urllib's errors are OSErrors; an answer that says why can be read
        said = error.read().decode("utf-8", "replace") if hasattr(error, "read") else str(error)
        return proof.read_stream(getattr(error, "code", 0), "", said)


def check(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    timeout = float(params["timeout"])
    before = [_counters(params[name], timeout) for name in ("gpu", "cpu")]
    answer, refused = _ask(params, "pd_disagg"), ""
    if answer.status != 200:
        # It won't split a request. Whether it answers at all, and on which side, can be told still.
        refused = f"; asked to split a request, the conductor said: {answer.error}"
        answer = _ask(params, "completions")
    deadline = time.monotonic() + SETTLE_S
    while True:
        gpu, cpu = (
            _counters(params[name], timeout).since(then)
            for name, then in zip(("gpu", "cpu"), before)
        )
        found = proof.judge(answer, gpu, cpu)
        found = found._replace(reason=found.reason + refused)
        if found.state in (proof.PROVEN, proof.BROKEN) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    failing = (proof.BROKEN, proof.ONE_SIDED) if params["require_handoff"] else (proof.BROKEN,)
    if found.state in failing:
        raise XpuError(
            f"sysHAX does not hand over ({found.state}): {found.reason}.",
            f"read {params['conductor']}/readyz, where the conductor says which hand-off it found "
            "between the engines, and `journalctl -u syshax`; see that both engines run versions "
            "and flags that can hand over.",
        )
    return {
        "changed": False,
        "state": found.state,
        "reason": found.reason,
        "route": answer.route,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "conductor": {"type": "str", "default": "http://127.0.0.1:8010"},
            "gpu": {"type": "str", "default": "http://127.0.0.1:8001"},
            "cpu": {"type": "str", "default": "http://127.0.0.1:8002"},
            "model": {"type": "str", "required": True},
            "prompt": {"type": "str", "default": "介绍一下openEuler。"},
            "prompt_chars": {"type": "int", "default": 1000},
            "max_tokens": {"type": "int", "default": 16, "no_log": False},
            "timeout": {"type": "int", "default": 120},
            "api_key": {"type": "str", "no_log": True},
            "require_handoff": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: check(m.params))


if __name__ == "__main__":
    main()
