"""CPD on tensors: filter-wise, and with components that filters share; factors and their batched ALS."""

from norton_plugin.cpd.als import CPDResult, decompose_filters, decompose_layers
from norton_plugin.cpd.coupled import CoupledResult, decompose_coupled
from norton_plugin.cpd.coupled_exact import full_components
from norton_plugin.cpd.coupled_factors import CoupledFactors
from norton_plugin.cpd.factors import CPDFactors, exact_factors
from norton_plugin.cpd.metric import OutputMetric
from norton_plugin.cpd.metric_fit import fit_under

__all__ = [
    "CPDFactors",
    "CPDResult",
    "CoupledFactors",
    "CoupledResult",
    "OutputMetric",
    "decompose_coupled",
    "decompose_filters",
    "decompose_layers",
    "exact_factors",
    "fit_under",
    "full_components",
]
