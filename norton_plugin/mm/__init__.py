"""Training, fine-tuning and evaluation on mmengine's Runner; the only package that imports mmengine.

Importing it registers the classes below in mmengine's registries, lets mmengine load its own checkpoints with
``weights_only`` on (see :mod:`norton_plugin.mm.patches.safe_globals`), and makes loading compressed weights into a
model of another structure an error (see :mod:`norton_plugin.mm.patches.guard`). Nothing of torch's is changed.
"""

from norton_plugin.errors import MissingExtraError

try:
    import mmengine as _mmengine  # noqa: F401
except ImportError as _error:  # pragma: no cover - needs an environment without mmengine
    raise MissingExtraError("mmengine is not installed; run: pip install 'norton-plugin[timm]'") from _error

from norton_plugin.mm.classification.augment import crop_and_flip
from norton_plugin.mm.classification.classifier import TimmClassifier
from norton_plugin.mm.classification.datasets import ImageFolder, collate_batch
from norton_plugin.mm.classification.evaluation import Evaluation, evaluate
from norton_plugin.mm.classification.finetune import FinetuneResult, finetune
from norton_plugin.mm.classification.metrics import TopKAccuracy
from norton_plugin.mm.classification.packed import PackedImages, pack_folder
from norton_plugin.mm.classification.preprocessor import ImagePreprocessor
from norton_plugin.mm.classification.progress import EpochRecord
from norton_plugin.mm.classification.settings import FinetuneSettings
from norton_plugin.mm.configs.builder import compressed_model
from norton_plugin.mm.configs.export import export_config, export_config_of_checkpoint
from norton_plugin.mm.patches import guard as _guard
from norton_plugin.mm.patches import safe_globals as _safe_globals
from norton_plugin.mm.run.hook import NortonHook
from norton_plugin.mm.runner.optimizer import parameter_groups

_safe_globals.install()
_guard.install()
CompressedModel = compressed_model  # the name that exported configs give as type

__all__ = [
    "CompressedModel",
    "EpochRecord",
    "Evaluation",
    "FinetuneResult",
    "FinetuneSettings",
    "ImageFolder",
    "ImagePreprocessor",
    "NortonHook",
    "PackedImages",
    "TimmClassifier",
    "TopKAccuracy",
    "collate_batch",
    "crop_and_flip",
    "compressed_model",
    "evaluate",
    "export_config",
    "export_config_of_checkpoint",
    "finetune",
    "pack_folder",
    "parameter_groups",
]
