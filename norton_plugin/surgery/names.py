"""Which names of a model the patterns of a recipe can mean: known before any work is done."""

from __future__ import annotations

from torch import nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.patterns import require_matches
from norton_plugin.recipe import Decomposition, Pruning, Scope

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_PRODUCERS = (*_CONVOLUTIONS, nn.Linear, ConvBlock, CPDLinear)


def check_scope(model: nn.Module, scope: Scope) -> None:
    """Refuse a scope with a pattern that names no module.

    Raises:
        RecipeError: The pattern is quoted.
    """
    scope.check(_names(model, (nn.Module,)))


def check_ranks(model: nn.Module, decomposition: Decomposition) -> None:
    """Refuse a rank or other settings for a pattern that names no layer that is ever decomposed.

    Raises:
        RecipeError: The pattern is quoted.
    """
    kinds = (*_CONVOLUTIONS, nn.Linear) if decomposition.linear else _CONVOLUTIONS
    require_matches(decomposition.ranks, _names(model, kinds), what="decomposition.ranks")
    require_matches(decomposition.layers, _names(model, kinds), what="decomposition.layers")


def check_keeps(model: nn.Module, pruning: Pruning) -> None:
    """Refuse a share for a pattern that names no layer with filters: of no other layer is a share ever looked up.

    Raises:
        RecipeError: The pattern is quoted.
    """
    require_matches(pruning.keeps, _names(model, _PRODUCERS), what="pruning.keeps")


def _names(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Dotted names of the modules of these kinds; one that stands in several places has several."""
    return [name for name, m in model.named_modules(remove_duplicate=False) if name and isinstance(m, kinds)]
