"""Filter-wise CPD on tensors: factors and their batched ALS."""

from norton_plugin.cpd.als import CPDResult, decompose_filters, decompose_layers
from norton_plugin.cpd.coupled_factors import CoupledFactors
from norton_plugin.cpd.factors import CPDFactors, exact_factors

__all__ = ["CPDFactors", "CoupledFactors", "CPDResult", "decompose_filters", "decompose_layers", "exact_factors"]
