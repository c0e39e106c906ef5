"""Compress convolutional networks by filter-wise CP decomposition followed by PABS pruning.

Public names are loaded on first use, so that importing the package stays light: neither torch_pruning nor
timm, mmengine or mmdet is imported before something needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from norton_plugin.artifact import load as load
    from norton_plugin.artifact import save as save
    from norton_plugin.blocks import CPDBlock as CPDBlock
    from norton_plugin.blocks import CPDLinear as CPDLinear
    from norton_plugin.blocks import SpatialSVDBlock as SpatialSVDBlock
    from norton_plugin.cpd import CoupledFactors as CoupledFactors
    from norton_plugin.cpd import CoupledResult as CoupledResult
    from norton_plugin.cpd import CPDFactors as CPDFactors
    from norton_plugin.cpd import CPDResult as CPDResult
    from norton_plugin.cpd import SpatialFactors as SpatialFactors
    from norton_plugin.cpd import SpatialResult as SpatialResult
    from norton_plugin.cpd import decompose_coupled as decompose_coupled
    from norton_plugin.cpd import decompose_filters as decompose_filters
    from norton_plugin.cpd import decompose_layers as decompose_layers
    from norton_plugin.cpd import decompose_spatial as decompose_spatial
    from norton_plugin.deploy import lower_ as lower_
    from norton_plugin.deploy import select_forms_ as select_forms_
    from norton_plugin.errors import ArtifactError as ArtifactError
    from norton_plugin.errors import DecompositionError as DecompositionError
    from norton_plugin.errors import MissingExtraError as MissingExtraError
    from norton_plugin.errors import NortonError as NortonError
    from norton_plugin.errors import RecipeError as RecipeError
    from norton_plugin.errors import SourceError as SourceError
    from norton_plugin.errors import SurgeryError as SurgeryError
    from norton_plugin.errors import TracingError as TracingError
    from norton_plugin.integrations.torch_pruning import CPDBlockPruner as CPDBlockPruner
    from norton_plugin.integrations.torch_pruning import PABSImportance as PABSImportance
    from norton_plugin.integrations.torch_pruning import pruner_options as pruner_options
    from norton_plugin.mm import NortonHook as NortonHook
    from norton_plugin.pabs import pabs_distance as pabs_distance
    from norton_plugin.pabs import removal_order as removal_order
    from norton_plugin.pipeline import CompressionReport as CompressionReport
    from norton_plugin.pipeline import CompressionResult as CompressionResult
    from norton_plugin.pipeline import compress as compress
    from norton_plugin.recipe import Budget as Budget
    from norton_plugin.recipe import Calibration as Calibration
    from norton_plugin.recipe import Decomposition as Decomposition
    from norton_plugin.recipe import Distillation as Distillation
    from norton_plugin.recipe import Pruning as Pruning
    from norton_plugin.recipe import Recipe as Recipe
    from norton_plugin.recipe import Scope as Scope
    from norton_plugin.surgery import decompose_ as decompose_
    from norton_plugin.surgery import prune_ as prune_
    from norton_plugin.zoo import ModelSource as ModelSource
    from norton_plugin.zoo import load_source as load_source

__version__ = "0.2.0"

_HOME = {
    "ArtifactError": "errors",
    "Budget": "recipe",
    "CPDBlock": "blocks",
    "CPDBlockPruner": "integrations.torch_pruning",
    "CPDFactors": "cpd",
    "CPDLinear": "blocks",
    "CPDResult": "cpd",
    "Calibration": "recipe",
    "CompressionReport": "pipeline",
    "CompressionResult": "pipeline",
    "CoupledFactors": "cpd",
    "CoupledResult": "cpd",
    "Decomposition": "recipe",
    "Distillation": "recipe",
    "DecompositionError": "errors",
    "MissingExtraError": "errors",
    "ModelSource": "zoo",
    "NortonError": "errors",
    "NortonHook": "mm",
    "PABSImportance": "integrations.torch_pruning",
    "Pruning": "recipe",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Scope": "recipe",
    "SourceError": "errors",
    "SpatialFactors": "cpd",
    "SpatialResult": "cpd",
    "SpatialSVDBlock": "blocks",
    "SurgeryError": "errors",
    "TracingError": "errors",
    "compress": "pipeline",
    "decompose_": "surgery",
    "decompose_coupled": "cpd",
    "decompose_filters": "cpd",
    "decompose_layers": "cpd",
    "decompose_spatial": "cpd",
    "load": "artifact",
    "load_source": "zoo",
    "lower_": "deploy",
    "pabs_distance": "pabs",
    "prune_": "surgery",
    "pruner_options": "integrations.torch_pruning",
    "removal_order": "pabs",
    "save": "artifact",
    "select_forms_": "deploy",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the module, those not loaded yet included."""
    return sorted({*globals(), *_HOME})
