"""What to do to a model, as frozen, validated dataclasses that survive JSON, YAML and mmengine configs."""

from norton_plugin.recipe.budget import BUDGETS, Budget
from norton_plugin.recipe.decomposition import Decomposition, LayerRequest, Level, Rank
from norton_plugin.recipe.distillation import Distillation
from norton_plugin.recipe.pruning import Criterion, DistanceCriterion, Pruning
from norton_plugin.recipe.section import current_names
from norton_plugin.recipe.whole import Calibration, Recipe, Scope

__all__ = [
    "BUDGETS",
    "Budget",
    "Calibration",
    "Criterion",
    "Decomposition",
    "DistanceCriterion",
    "Distillation",
    "LayerRequest",
    "Level",
    "Pruning",
    "Rank",
    "Recipe",
    "Scope",
    "current_names",
]
