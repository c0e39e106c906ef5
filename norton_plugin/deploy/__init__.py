"""Making a compressed model fast where it runs."""

from norton_plugin.deploy.folding import FoldReport, fold_
from norton_plugin.deploy.forms import FormChoice, select_forms_
from norton_plugin.deploy.latency import LatencyRatio, compare_latency
from norton_plugin.deploy.loading import load, load_prepared
from norton_plugin.deploy.lowering import lower_, lower_block
from norton_plugin.deploy.preparation import PreparedModel, prepare
from norton_plugin.deploy.table import BlockChoice, DeploymentTable, read_table

__all__ = [
    "BlockChoice",
    "DeploymentTable",
    "FoldReport",
    "FormChoice",
    "LatencyRatio",
    "PreparedModel",
    "compare_latency",
    "fold_",
    "load",
    "load_prepared",
    "lower_",
    "lower_block",
    "prepare",
    "read_table",
    "select_forms_",
]
