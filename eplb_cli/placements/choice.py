"""Words about placements, for the command line to list before anything heavy is imported."""

from __future__ import annotations

from typing import Literal

NAMED_MAPS = ("linear", "round_robin", "trivial")
"""Maps that have a name instead of a file."""

EngineName = Literal["vllm", "sglang", "tensorrt-llm", "ascend"]
"""Engines that take a map of experts, as `placements/engines` has them."""
