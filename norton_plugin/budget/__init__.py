"""From what a model may cost to a level and a size for each of its layers, and a share of each group of channels."""

from norton_plugin.budget.hybrid import plan_candidates
from norton_plugin.budget.plan import BudgetPlan, PlannedGroup, PlannedLayer, plan_budget

__all__ = ["BudgetPlan", "PlannedGroup", "PlannedLayer", "plan_budget", "plan_candidates"]
