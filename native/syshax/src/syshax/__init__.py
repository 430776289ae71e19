# SPDX-License-Identifier: Apache-2.0
"""The sysHAX conductor: prefill on the accelerator, decode on the CPU, one OpenAI endpoint.

Layers, each importing only those before it: ``sse``, ``errors``, ``prompts`` (bytes and JSON) ·
``dialects`` (what the two legs of a hand-off say) · ``exchange`` (one request as a state machine)
· ``breaker``, ``scheduler`` (which engine) · ``config`` · ``dispatch`` (places and the queue) ·
``engine``, ``conductor``, ``probe``, ``server`` (I/O).
"""

__version__ = "0.1.0"
