"""Models of Hugging Face transformers: compressed ones are saved and loaded by their own methods.

transformers is imported where a model of it is at hand, or the loader is asked for (docs/transformers.md).
"""

from norton_plugin.hf.carrying import carry_, register_loader

__all__ = ["carry_", "register_loader"]
