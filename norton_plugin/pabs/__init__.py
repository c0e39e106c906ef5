"""Which filters of a layer resemble each other, and in which order to remove them; tensors only."""

from norton_plugin.pabs.angles import largest_angle_matrix, principal_angles
from norton_plugin.pabs.baselines import csa_distance, vbd_distance
from norton_plugin.pabs.clusters import cluster_filters
from norton_plugin.pabs.distance import PairwiseDistance, combine, pabs_distance, vector_distance
from norton_plugin.pabs.excerpt import MOST_FILTERS, DistanceExcerpt, excerpt
from norton_plugin.pabs.order import keep_indices, removal_order, removal_scores
from norton_plugin.pabs.output_order import OutputSystem, output_order, output_scores

__all__ = [
    "MOST_FILTERS",
    "DistanceExcerpt",
    "OutputSystem",
    "PairwiseDistance",
    "cluster_filters",
    "combine",
    "csa_distance",
    "excerpt",
    "keep_indices",
    "largest_angle_matrix",
    "output_order",
    "output_scores",
    "pabs_distance",
    "principal_angles",
    "removal_order",
    "removal_scores",
    "vbd_distance",
    "vector_distance",
]
