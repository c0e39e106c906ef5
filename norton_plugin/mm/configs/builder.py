"""Building a compressed model from a config, with no hook: what inference tools of OpenMMLab need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from norton_plugin.errors import RecipeError
from norton_plugin.mm.configs.structure_text import structure_from_config
from norton_plugin.mm.patches import fuse
from norton_plugin.surgery.structure import apply_structure_


@MODELS.register_module(name="CompressedModel")
def compressed_model(norton: Mapping[str, Any], **model: Any) -> nn.Module:
    """Build a dense model from its usual keys and give it the structure of its compressed form.

    The result is of the model's own class, with the names of its modules unchanged; weights come from a checkpoint.

    Args:
        norton: ``type``, what the model's own type is, and ``structure``, as ``export_config`` writes it or as nested
            dicts.
        **model: The keys of the model's own config.

    Raises:
        RecipeError: ``norton`` lacks a key.
        ArtifactError: The structure belongs to another model, or is damaged.
    """
    missing = {"type", "structure"} - set(norton)
    if missing:
        raise RecipeError(f"CompressedModel needs norton=dict(type=..., structure=...); missing: {sorted(missing)}")
    built: nn.Module = MODELS.build({**model, "type": norton["type"]})
    fuse.install()
    apply_structure_(built, structure_from_config(norton["structure"]))
    return built
