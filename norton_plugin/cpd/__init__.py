"""CPD on tensors: filter-wise, and with components that filters share; factors and their batched ALS."""

from norton_plugin.cpd.als import CPDResult, decompose_filters, decompose_layers
from norton_plugin.cpd.coupled import CoupledResult, decompose_coupled
from norton_plugin.cpd.coupled_exact import full_components
from norton_plugin.cpd.coupled_factors import CoupledFactors
from norton_plugin.cpd.factors import CPDFactors, exact_factors

__all__ = [
    "CPDFactors",
    "CPDResult",
    "CoupledFactors",
    "CoupledResult",
    "decompose_coupled",
    "decompose_filters",
    "decompose_layers",
    "exact_factors",
    "full_components",
]
