"""What a model costs, by one counter."""

from norton_plugin.budget.counter import ModelCost, count_cost

__all__ = ["ModelCost", "count_cost"]
