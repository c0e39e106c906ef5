"""From what a model may cost to a level and a size for each of its layers."""

from norton_plugin.budget.plan import BudgetPlan, PlannedLayer, plan_budget

__all__ = ["BudgetPlan", "PlannedLayer", "plan_budget"]
