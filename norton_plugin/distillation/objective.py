"""What distillation minimises, for one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.distillation.losses import distillation_loss, feature_loss
from norton_plugin.distillation.places import alike, alike_at, blocks_of, recorded
from norton_plugin.modules.running import output_tensors


class Objective:
    """Outputs of a compressed model against those of the dense one, and outputs of their blocks.

    One output (B, classes) counts as logits: KL at the temperature. Any others, as the maps of a detector, count by
    their squared error over the squares of the dense model's (``feature_loss``), and so do blocks. What has another
    shape than in the dense model, as where channels were pruned, is not compared.

    Args:
        dense: Run without gradients.
        compressed: The model that learns.
        call: Runs a model on a batch.
        temperature: Of the softmax, above 0.
        block_weight: Of the blocks, at least 0.

    Attributes:
        compared: Names of the blocks that the last batch was compared at.
    """

    def __init__(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        call: Callable[[nn.Module, Any], Any],
        *,
        temperature: float,
        block_weight: float,
    ) -> None:
        self._dense, self._compressed, self._call = dense, compressed, call
        self._temperature, self._block_weight = temperature, block_weight
        self._blocks = blocks_of(compressed) if block_weight else ()
        self.compared: tuple[str, ...] = ()

    def __call__(self, batch: Any) -> Tensor:
        """Return the loss of a batch, a scalar; it needs no gradient where nothing can be compared."""
        with torch.no_grad(), recorded(self._dense, self._blocks) as targets:
            wanted = output_tensors(self._call(self._dense, batch))
        with recorded(self._compressed, self._blocks) as own:
            found = output_tensors(self._call(self._compressed, batch))
        loss = self._of_outputs(found, wanted)
        self.compared, pairs = alike_at(own, targets, outputs=found)
        return loss + self._block_weight * feature_loss(*pairs) if self.compared else loss

    def _of_outputs(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        if len(wanted) == 1 and wanted[0].dim() == 2 and wanted[0].shape[1] > 1:
            return distillation_loss(found[0], wanted[0], temperature=self._temperature)
        pairs = alike(found, wanted)
        return feature_loss(*pairs) if pairs[0] else torch.zeros(())
