"""Making a compressed model fast where it runs."""

from norton_plugin.deploy.folding import FoldReport, fold_
from norton_plugin.deploy.forms import FormChoice, select_forms_
from norton_plugin.deploy.latency import LatencyRatio, compare_latency
from norton_plugin.deploy.lowering import lower_, lower_block
from norton_plugin.deploy.preparation import BlockChoice, PreparedModel, prepare

__all__ = [
    "BlockChoice",
    "FoldReport",
    "FormChoice",
    "LatencyRatio",
    "PreparedModel",
    "compare_latency",
    "fold_",
    "lower_",
    "lower_block",
    "prepare",
    "select_forms_",
]
