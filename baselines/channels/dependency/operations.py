"""The rule of each operation that a network may run.

What only moves data is done to the labels as well. What is not listed fixes the channels that
reach it.
"""

import re
from functools import cache
from typing import Any

import torch

from baselines.channels.dependency import entries, movement, products, statistics
from baselines.channels.dependency.tracer import Rule

RULES: dict[str, Rule] = {
    **entries.RULES, **movement.RULES, **products.RULES, **statistics.RULES,
}  # fmt: skip


@cache
def rule_for(function: Any, name: str) -> Rule | None:
    """The rule of an operation; None where its parts are to be followed.

    Args:
        function: an overload of `torch.ops`.
        name: without namespace, overload and in-place mark.
    """
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in function.tags:
        return entries.entry_by_entry
    if function.is_view:
        return movement.moved
    if re.search(r"(pool|upsample|pad|grid_sampler).*[123]d", name):
        return statistics.over_positions
    if _is_composed(function):
        return None
    return entries.unknown


def _is_composed(function: Any) -> bool:
    key = "CompositeImplicitAutograd"
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key)
    return found
