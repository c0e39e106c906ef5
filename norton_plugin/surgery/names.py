"""Which names of a model the patterns of a recipe can mean: known before any work is done."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from norton_plugin.channels.layers import is_producer
from norton_plugin.patterns import require_matches
from norton_plugin.recipe import Decomposition, Pruning, Scope

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def check_scope(model: nn.Module, scope: Scope) -> None:
    """Refuse a scope with a pattern that names no module.

    Raises:
        RecipeError: The pattern is quoted.
    """
    scope.check([name for name, _ in _named(model)])


def check_ranks(model: nn.Module, decomposition: Decomposition) -> None:
    """Refuse a rank or other settings for a pattern that names no layer that is ever decomposed.

    Raises:
        RecipeError: The pattern is quoted.
    """
    kinds = (*_CONVOLUTIONS, nn.Linear) if decomposition.linear else _CONVOLUTIONS
    names = [name for name, module in _named(model) if isinstance(module, kinds)]
    require_matches(decomposition.ranks, names, what="decomposition.ranks")
    require_matches(decomposition.layers, names, what="decomposition.layers")


def check_keeps(model: nn.Module, pruning: Pruning) -> None:
    """Refuse a share for a pattern that names no layer with filters: of no other layer is a share ever looked up.

    Raises:
        RecipeError: The pattern is quoted.
    """
    names = [name for name, module in _named(model) if is_producer(module)]
    require_matches(pruning.keeps, names, what="pruning.keeps")


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules below a model with their dotted names; one that stands in several places has several."""
    yield from ((name, module) for name, module in model.named_modules(remove_duplicate=False) if name)
