"""Making a compressed model fast where it runs."""

from norton_plugin.deploy.forms import FormChoice, select_forms_
from norton_plugin.deploy.latency import LatencyRatio, compare_latency

__all__ = ["FormChoice", "LatencyRatio", "compare_latency", "select_forms_"]
