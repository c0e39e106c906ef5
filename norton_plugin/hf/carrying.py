"""Models of transformers carry their structure in their config."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from norton_plugin.errors import MissingExtraError
from norton_plugin.surgery.structure import Structure


def carry_(model: nn.Module, structure: Structure) -> None:
    """Let a model of transformers carry one more structure in its config; any other model is left alone.

    Args:
        model: Has this structure.
        structure: What led to it.

    Raises:
        SurgeryError: The config holds a quantisation by others.
    """
    bases = type(model).__mro__
    if any(base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.") for base in bases):
        register_loader()
        import_module("norton_plugin.hf.structure_config").attach_(model, structure)


def register_loader() -> None:
    """Make ``from_pretrained`` of transformers rebuild compressed models; a second call changes nothing.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("transformers is not installed: pip install transformers") from error
    import_module("norton_plugin.hf.structure_loader")
