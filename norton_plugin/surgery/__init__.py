"""Changing models: which layers, by what, and how to rebuild the result."""

from norton_plugin.surgery.decompose import decompose_, from_conv
from norton_plugin.surgery.prune import prune_
from norton_plugin.surgery.report import DecomposedLayer, DecompositionReport, PrunedGroup, PruningReport, Skipped
from norton_plugin.surgery.structure import apply_structure_, structure_hash

__all__ = [
    "DecomposedLayer",
    "DecompositionReport",
    "PrunedGroup",
    "PruningReport",
    "Skipped",
    "apply_structure_",
    "decompose_",
    "from_conv",
    "prune_",
    "structure_hash",
]
