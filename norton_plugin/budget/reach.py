"""Budgets that cannot be met, and what to do about them."""

from __future__ import annotations

import math

from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Recipe

WORDS = {"macs": "MACs", "params": "parameters", "latency": "milliseconds"}


class OutOfReachError(RecipeError):
    """A budget is below what can be reached.

    Args:
        name: ``"macs"``, ``"params"`` or ``"latency"``.
        share: What was asked for.
        least: What can be reached.
        recipe: Of the budget.
    """

    def __init__(self, name: str, share: float, least: float, recipe: Recipe) -> None:
        super().__init__(_message(name, share, least, recipe))
        self.name, self.least = name, least


def _message(name: str, share: float, least: float, recipe: Recipe) -> str:
    """Return what to say, and what may be done; nothing that the recipe does already."""
    asked = recipe.decomposition
    ways = [
        ("name at least that", least < 1),
        ("try decomposition.level 'auto'", asked.level != "auto"),
        ("decompose Linear layers too (decomposition.linear)", not asked.linear),
        ("open more layers (scope)", bool(recipe.scope.include or recipe.scope.exclude)),
        ("prune as well (budget.prune, or pruning.keep in place of a budget)", not recipe.budget.prune),
    ]
    told = ", or ".join(words for words, holds in ways if holds)
    return (
        f"budget.{name} is {share:g}, but the least that can be reached is {math.ceil(least * 1e4) / 1e4:g} of "
        f"the dense model's {WORDS[name]}{'; ' if told else ''}{told}"
    )


class NotTogetherError(RecipeError):
    """Budgets can be met one at a time only.

    Args:
        limits: What was asked for, by name.
    """

    def __init__(self, limits: dict[str, float]) -> None:
        told = " and ".join(f"budget.{name} {share:g}" for name, share in limits.items())
        super().__init__(f"{told} can be met one at a time, but not together; raise one of them")
