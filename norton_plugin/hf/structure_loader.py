"""What ``from_pretrained`` does to the dense model before it loads the weights of a compressed one."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from norton_plugin.hf.structure_config import METHOD
from norton_plugin.surgery.structure import apply_structure_


@register_quantizer(METHOD)
class StructureLoader(HfQuantizer):
    """Rebuilds the structure; the model is an ordinary one afterwards, that can be trained and cast."""

    def _process_model_before_weight_loading(self, model: nn.Module, **others: Any) -> nn.Module:
        config: Any = self.quantization_config
        for structure in config.parsed():
            apply_structure_(model, structure)
        return model

    def postprocess_model(self, model: Any, **others: Any) -> Any:
        """Leave the structure in the config, so that the model can be saved again, and no mark of a quantisation."""
        model.config.quantization_config = self.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        del model.quantization_method
        return model

    def is_serializable(self) -> bool:
        """Return that a loaded model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """That a loaded model can be trained."""
        return True
