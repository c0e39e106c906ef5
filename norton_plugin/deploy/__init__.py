"""Making a compressed model fast where it runs."""

from norton_plugin.deploy.forms import FormChoice, select_forms_
from norton_plugin.deploy.latency import LatencyRatio, compare_latency
from norton_plugin.deploy.lowering import lower_, lower_block

__all__ = ["FormChoice", "LatencyRatio", "compare_latency", "lower_", "lower_block", "select_forms_"]
