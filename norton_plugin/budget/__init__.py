"""From what a model may cost to a level and a size for each of its layers, and a share of each group of channels."""

from norton_plugin.budget.decomposing import Chooser, plan_budget
from norton_plugin.budget.even import NarrowModel
from norton_plugin.budget.hybrid import plan_candidates
from norton_plugin.budget.latency import TOLERANCE, LatencyBudget
from norton_plugin.budget.menu import LayerMenu, layer_menus, timed_menus
from norton_plugin.budget.plan import BudgetPlan, Milliseconds, PlannedGroup, PlannedLayer
from norton_plugin.budget.reach import OutOfReachError
from norton_plugin.budget.record import SENSITIVITIES, SensitivityRecord, new_record, read_record

__all__ = [
    "SENSITIVITIES",
    "TOLERANCE",
    "SensitivityRecord",
    "new_record",
    "read_record",
    "timed_menus",
    "BudgetPlan",
    "Chooser",
    "OutOfReachError",
    "layer_menus",
    "LatencyBudget",
    "LayerMenu",
    "Milliseconds",
    "NarrowModel",
    "PlannedGroup",
    "PlannedLayer",
    "plan_budget",
    "plan_candidates",
]
