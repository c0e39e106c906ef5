"""BatchNorms that keep their statistics while the compressed model trains."""

from __future__ import annotations

from mmengine.runner import Runner
from torch import nn

from norton_plugin.recipe import Calibration

# Of one process and of several (SyncBatchNorm), and all that are derived from them.
_NORMS = (nn.modules.batchnorm._BatchNorm,)
# A batch of fewer images per process estimates statistics worse than some hundred images did (docs/results).
_FEW_IMAGES = 32


def keep_statistics_(model: nn.Module) -> int:
    """Let all BatchNorms run with their running statistics until the model is next put into training mode, in place.

    Their weights and biases learn on. Modules inside of a norm, such as timm's activation and dropout, keep their mode.

    Args:
        model: In training mode, or not.

    Returns:
        How many there are.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, _NORMS) and norm.track_running_stats]
    for norm in norms:
        norm.training = False
    return len(norms)


def keeps_statistics(runner: Runner, asked: bool | None, calibration: Calibration) -> bool:
    """Decide whether BatchNorms keep their statistics in a run, and say so in its log.

    Args:
        runner: About to train.
        asked: What the config says; None for: where the statistics are those of training images under the compressed
            weights, and batches are small.
        calibration: Of the recipe.
    """
    size = _images_of_batch(runner)
    estimated = calibration.fit or calibration.batch_norm
    keeps = asked if asked is not None else estimated and size is not None and size < _FEW_IMAGES
    if keeps:
        why = f" (a batch has {size} images; norm_eval=False turns this off)" if asked is None else ""
        runner.logger.info("NORTON: BatchNorms keep their statistics while the compressed model trains%s", why)
    return keeps


def _images_of_batch(runner: Runner) -> int | None:
    """Return the images of a batch of one process; None where the loader does not tell."""
    loader = runner.train_loop.dataloader
    own = getattr(loader, "batch_size", None)
    return own if own is not None else getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
