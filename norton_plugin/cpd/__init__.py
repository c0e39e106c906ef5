"""Decompositions of tensors: CPD of filters, with components of their own or shared, and the spatial SVD."""

from norton_plugin.cpd.als import CPDResult, decompose_filters, decompose_layers
from norton_plugin.cpd.coupled import CoupledResult, decompose_coupled
from norton_plugin.cpd.coupled_exact import full_components
from norton_plugin.cpd.coupled_factors import CoupledFactors
from norton_plugin.cpd.factors import CPDFactors, exact_factors
from norton_plugin.cpd.metric import OutputMetric
from norton_plugin.cpd.metric_fit import fit_under
from norton_plugin.cpd.metric_spatial import fit_spatial_under
from norton_plugin.cpd.spatial_factors import SpatialFactors
from norton_plugin.cpd.spatial_svd import SpatialResult, decompose_spatial, full_spatial_rank

__all__ = [
    "CPDFactors",
    "CPDResult",
    "CoupledFactors",
    "CoupledResult",
    "OutputMetric",
    "SpatialFactors",
    "SpatialResult",
    "decompose_coupled",
    "decompose_filters",
    "decompose_layers",
    "decompose_spatial",
    "exact_factors",
    "fit_spatial_under",
    "fit_under",
    "full_components",
    "full_spatial_rank",
]
