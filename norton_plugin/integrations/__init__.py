"""Other pruning frameworks that work with the blocks and the criteria of this package."""

from __future__ import annotations

import sys
from typing import Any

from norton_plugin.errors import RecipeError
from norton_plugin.surgery.criteria import GroupCriterion


def as_criterion(given: Any) -> GroupCriterion:
    """Make a criterion of what a user gives as one.

    Args:
        given: An importance of Torch-Pruning, or a function from a ``ChannelGroup`` to one score per channel.

    Raises:
        RecipeError: It is neither.
    """
    torch_pruning = sys.modules.get("torch_pruning")  # an importance exists only where it has been imported
    if torch_pruning is not None and isinstance(given, torch_pruning.importance.Importance):
        from norton_plugin.integrations.torch_pruning import criterion_of

        return criterion_of(given)
    if not callable(given):
        raise RecipeError(
            f"criterion is {given!r}; expected an importance of Torch-Pruning or a function from a channel group to "
            "its scores (criteria by name, such as 'pabs', stand in the recipe: pruning.criterion)"
        )
    return given
