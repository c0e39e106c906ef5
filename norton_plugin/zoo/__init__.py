"""Where models come from: timm, torchvision, mmdet, any Python function, and the networks of the paper.

The only package that imports the models of timm, torchvision, mmdet and scikit-learn; each is imported on first use.
"""

from norton_plugin.zoo.checkpoint import load_checkpoint_, read_state_dict
from norton_plugin.zoo.preprocessing import Preprocessing, input_facts
from norton_plugin.zoo.sources import (
    ModelSource,
    exported_part,
    forward_of,
    inference_of,
    list_models,
    load_source,
    rebuild,
    spec_of,
)

__all__ = [
    "ModelSource",
    "Preprocessing",
    "exported_part",
    "forward_of",
    "inference_of",
    "input_facts",
    "list_models",
    "load_checkpoint_",
    "load_source",
    "read_state_dict",
    "rebuild",
    "spec_of",
]
