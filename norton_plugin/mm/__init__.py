"""Training, fine-tuning and evaluation on mmengine's Runner; the only package that imports mmengine.

Importing it registers the classes below in mmengine's registries, lets mmengine load its own checkpoints with
``weights_only`` on (see :mod:`norton_plugin.mm.safe_globals`), and makes loading compressed weights into a model of
another structure an error (see :mod:`norton_plugin.mm.guard`). Nothing of torch's is changed.
"""

from ..errors import MissingExtraError

try:
    import mmengine as _mmengine  # noqa: F401
except ImportError as _error:  # pragma: no cover - needs an environment without mmengine
    raise MissingExtraError("mmengine is not installed; run: pip install 'norton-plugin[timm]'") from _error

from . import guard as _guard
from . import safe_globals as _safe_globals
from .augment import crop_and_flip
from .builder import compressed_model
from .classifier import TimmClassifier
from .datasets import ImageFolder, collate_batch
from .evaluate import Evaluation, evaluate
from .export_config import export_config, export_config_of_checkpoint
from .finetune import FinetuneResult, finetune
from .hook import NortonHook
from .metrics import TopKAccuracy
from .optimizer import parameter_groups
from .packed import PackedImages, pack_folder
from .preprocessor import ImagePreprocessor
from .progress import EpochRecord
from .settings import FinetuneSettings

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
