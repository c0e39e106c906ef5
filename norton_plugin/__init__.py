"""Compress convolutional networks by filter-wise CP decomposition followed by PABS pruning.

Public names are loaded on first use, so that importing the package stays light: neither torch_pruning nor
timm, mmengine or mmdet is imported before something needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import load as load
    from .artifact import save as save
    from .blocks import CPDBlock as CPDBlock
    from .cpd import CPDFactors as CPDFactors
    from .cpd import CPDResult as CPDResult
    from .cpd import decompose_filters as decompose_filters
    from .cpd import decompose_layers as decompose_layers
    from .errors import NortonError as NortonError
    from .integrations.torch_pruning import CPDBlockPruner as CPDBlockPruner
    from .integrations.torch_pruning import PABSImportance as PABSImportance
    from .mm import NortonHook as NortonHook
    from .pabs import pabs_distance as pabs_distance
    from .pabs import removal_order as removal_order
    from .pipeline import CompressionReport as CompressionReport
    from .pipeline import compress as compress
    from .recipe import Recipe as Recipe
    from .surgery import decompose_ as decompose_
    from .surgery import prune_ as prune_

__version__ = "0.2.0"

_HOME = {
    "CPDBlock": "blocks",
    "CPDBlockPruner": "integrations.torch_pruning",
    "CPDFactors": "cpd",
    "CPDResult": "cpd",
    "CompressionReport": "pipeline",
    "NortonError": "errors",
    "NortonHook": "mm",
    "PABSImportance": "integrations.torch_pruning",
    "Recipe": "recipe",
    "compress": "pipeline",
    "decompose_": "surgery",
    "decompose_filters": "cpd",
    "decompose_layers": "cpd",
    "load": "artifact",
    "pabs_distance": "pabs",
    "prune_": "surgery",
    "removal_order": "pabs",
    "save": "artifact",
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
    """Names of the module, those not loaded yet included."""
    return sorted({*globals(), *_HOME})
