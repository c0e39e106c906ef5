"""BatchNorms that keep their statistics while a compressed model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch import nn

# Of one process and of several (SyncBatchNorm), and all that are derived from them.
_NORMS = (nn.modules.batchnorm._BatchNorm,)
# Fewer images than this estimate statistics worse than the some hundred after surgery did (docs/results).
_FEW_IMAGES = 32
_NOT_ESTIMATED = "they are not statistics of training images under trained weights"


class NormStatistics:
    """Whether BatchNorms keep their statistics in a run: decided after surgery, taken over by a resumed run.

    Args:
        asked: What the config says. None leaves the decision to the run: they are kept where they were estimated on
            training images after surgery, and one step shows a norm fewer than 32 images.

    Attributes:
        kept: The decision; None before there is one.
    """

    def __init__(self, asked: bool | None) -> None:
        self.asked = asked
        self.kept: bool | None = None

    def decide(self, runner: Runner, *, estimated: bool) -> None:
        """Decide for a model that was just compressed or loaded, and say so in the log.

        Args:
            runner: Its training loop has a data loader.
            estimated: Whether the statistics are those of training images under the compressed weights.
        """
        images = _images_of_step(runner)
        few = images is not None and images < _FEW_IMAGES
        shown = f"a step shows a norm {images} images"
        self._set(runner, estimated and few, shown if estimated else _NOT_ESTIMATED)

    def take_over(self, runner: Runner, entry: Mapping[str, Any], *, resumed: bool) -> None:
        """Decide for a model that a checkpoint brought compressed.

        Args:
            runner: About to train it.
            entry: What NortonHook wrote into the checkpoint.
            resumed: Whether the run goes on that wrote it; its decision counts then, which was no in older versions.
        """
        if resumed:
            self._set(runner, bool(entry.get("norm_eval", False)), "as before the run was resumed")
        else:
            self.decide(runner, estimated=True)

    def apply_(self, model: nn.Module) -> None:
        """Put norms that keep their statistics into evaluation mode; the next ``model.train()`` undoes it.

        Nothing happens before there is a decision, such as in the dense epochs before surgery.
        """
        if self.kept:
            keep_statistics_(model)

    def _set(self, runner: Runner, own: bool, why: str) -> None:
        self.kept = own if self.asked is None else self.asked
        if not any(isinstance(module, _NORMS) for module in runner.model.modules()):
            return
        what = "keep their statistics" if self.kept else "update their statistics"
        reason = f"{why}; norm_eval={not self.kept} changes this" if self.asked is None else f"norm_eval={self.asked}"
        runner.logger.info("NORTON: BatchNorms %s while the compressed model trains (%s)", what, reason)


def keep_statistics_(model: nn.Module) -> None:
    """Let all BatchNorms run with their running statistics until the model is next put into training mode, in place.

    Their weights and biases learn on. Modules inside of a norm, such as timm's activation and dropout, keep their mode.

    Args:
        model: In training mode, or not.
    """
    for module in model.modules():
        if isinstance(module, _NORMS) and module.track_running_stats:
            module.training = False


def _images_of_step(runner: Runner) -> int | None:
    """Return how many images a norm sees in a step; None where the data loader does not tell."""
    loader = runner.train_loop.dataloader
    own = getattr(loader, "batch_size", None)
    own = own if own is not None else getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    joined = any(isinstance(module, nn.SyncBatchNorm) for module in runner.model.modules())
    return own * get_world_size() if own is not None and joined else own
