"""The entry of a model's config that says how it was compressed.

``config.json`` describes the dense architecture still (``hidden_sizes`` and the like are those of the original): that
is what ``from_pretrained`` builds first. Under ``quantization_config`` transformers keeps what has to happen to a model
between that and loading its weights, whoever provides it; this is such an entry, and nothing is quantised.
"""

from __future__ import annotations

import json
from typing import Any

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from norton_plugin.errors import ArtifactError, SurgeryError
from norton_plugin.surgery.structure import Structure

METHOD = "norton"
_ENTRY = "quantization_config"


@register_quantization_config(METHOD)
class StructureConfig(QuantizationConfigMixin):
    """The structures that lead from the dense architecture to a compressed model.

    Args:
        structures: One per compression, as one text of JSON: transformers rewrites some keys of nested dicts.
        **others: What the file holds beside it, such as ``quant_method``.
    """

    structures: str

    def __init__(self, structures: str, **others: Any) -> None:
        self.__dict__.update(quant_method=METHOD, structures=structures)

    def parsed(self) -> list[Structure]:
        """Return the structures.

        Raises:
            ArtifactError: The text is no list of them.
        """
        try:
            structures = json.loads(self.structures)
        except (TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"the structure in config.json is no JSON ({error}); it was edited or damaged"
            ) from error
        if not isinstance(structures, list) or not all(isinstance(each, dict) for each in structures):
            raise ArtifactError("the structure in config.json is no list of structures; it was damaged")
        return structures


def attach_(model: Any, structure: Structure) -> None:
    """Let a model's config carry one more structure.

    Args:
        model: A ``PreTrainedModel`` that has this structure.
        structure: What led to it.

    Raises:
        SurgeryError: The config holds a quantisation by others.
    """
    earlier = getattr(model.config, _ENTRY, None)
    if earlier is not None and not isinstance(earlier, StructureConfig):
        raise SurgeryError(f"the model is quantised already ({_ENTRY} is {type(earlier).__name__}); compress it before")
    structures = [] if earlier is None else earlier.parsed()
    setattr(model.config, _ENTRY, StructureConfig(json.dumps([*structures, structure])))
