"""`vllm serve DST --load-format eplb`: vLLM starts from any placement that eplb wrote.

vLLM finds `register` by its entry point. `vllm_internals` is all that knows vLLM; the other modules decide
what is read and what is refused, on plain values::

    tree      DST: shards, placement and manifest that fit each other
    engine    what vLLM has built, as far as it matters here
    admit     whether the two fit, and if not, why: before any weight is read
    reading   the tensors of one rank, with their digests compared where that is asked for
    options   what the loader is told
    current   the map as it is now, in a file
"""

from __future__ import annotations


def register() -> None:
    """Make `--load-format eplb` known; called by vLLM in each of its processes."""
    from eplb_cli.engines.vllm.vllm_internals import register_loader

    register_loader()
