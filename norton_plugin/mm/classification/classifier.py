"""An image classifier as mmengine's Runner wants it."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from norton_plugin.distillation import distillation_loss, feature_loss
from norton_plugin.distillation.places import alike_at, blocks_of, recorded
from norton_plugin.errors import RecipeError, SourceError
from norton_plugin.mm.distillation.losses import Teacher
from norton_plugin.zoo import load_source


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """Wrap any ``nn.Module`` that maps images to logits, from timm or elsewhere.

    Args:
        model: A module, or a source such as ``timm:resnet18``, or a mapping with the arguments of
            :func:`norton_plugin.zoo.load_source` (``dict(spec="timm:resnet18", num_classes=3)``).
        data_preprocessor: An :class:`~norton_plugin.mm.ImagePreprocessor` or its config. When ``None`` and ``model`` is
            a source, the source's own mean and std; otherwise no normalisation.
        label_smoothing: In [0, 1).
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        model: nn.Module | str | Mapping[str, Any],
        data_preprocessor: nn.Module | dict[str, Any] | None = None,
        *,
        label_smoothing: float = 0.0,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"label_smoothing is {label_smoothing}, expected at least 0 and below 1")
        normalisation: dict[str, Any] = {}
        if not isinstance(model, nn.Module):
            source = load_source(model) if isinstance(model, str) else load_source(**model)
            normalisation = {"mean": source.mean, "std": source.std}
            model = source.model
        if data_preprocessor is None:
            data_preprocessor = {"type": "ImagePreprocessor", **normalisation}
        elif isinstance(data_preprocessor, Mapping):
            data_preprocessor = {"type": "ImagePreprocessor", **normalisation, **data_preprocessor}
        super().__init__(data_preprocessor, init_cfg)
        self.model = model
        self.label_smoothing = label_smoothing
        self._teacher: Teacher | None = None

    def init_weights(self) -> None:
        """Apply ``init_cfg`` alone: the wrapped model keeps the weights it came with.

        A Runner calls this before it trains, and mmengine hands the call on to every child that has such a method and
        is not marked as initialised. The models of timm have one, which draws new weights.
        """
        marked = getattr(self.model, "is_init", None)
        self.model.is_init = True  # type: ignore[assignment]
        try:
            super().init_weights()
        finally:
            if marked is None:
                del self.model.is_init
            else:
                self.model.is_init = marked

    def set_teacher(
        self, teacher: nn.Module | None, *, weight: float = 0.5, temperature: float = 4.0, block_weight: float = 0.0
    ) -> None:
        """Add knowledge distillation to the loss: (1 - weight) * cross entropy + weight * distillation.

        Distillation is that of the logits, and ``block_weight`` times the squared error of the blocks' outputs over the
        teacher's squares (``distillation.places.blocks_of``). A teacher of other blocks gives its logits alone.

        Args:
            teacher: The model to learn from, on the same device; ``None`` to stop.
            weight: Share of the distillation loss, in [0, 1].
            temperature: Temperature of the softmax, above 0.
            block_weight: Of the blocks, at least 0.

        Raises:
            RecipeError: A value is out of its range.
        """
        if not 0 <= weight <= 1 or temperature <= 0 or block_weight < 0:
            raise RecipeError(
                f"distillation weight {weight}, temperature {temperature} and block weight {block_weight}: expected a "
                "weight in [0, 1], a temperature above 0 and a block weight of at least 0"
            )
        blocks = blocks_of(self.model) if block_weight else ()
        self._teacher = None if teacher is None else Teacher(teacher, blocks)
        self._distillation = (weight, temperature, block_weight)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """Train for one step, as mmengine's models do.

        Raises:
            SourceError: None of the images of the batch could be read.
        """
        if not data:
            raise SourceError(
                "none of the images of a batch can be read, so that there is nothing to learn from; the warnings "
                "before name the files: repair or remove them, or use larger batches"
            )
        losses: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        return losses

    def val_step(self, data: Any) -> list[Any]:
        """Return predictions for a batch; none for one of which no image could be read."""
        return super().val_step(data) if data else []

    def test_step(self, data: Any) -> list[Any]:
        """Return predictions for a batch; none for one of which no image could be read."""
        return super().test_step(data) if data else []

    def forward(
        self, inputs: Tensor, data_samples: Tensor | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run the model.

        Args:
            inputs: Normalised images (B, C, H, W).
            data_samples: Labels, int64 (B,); needed by mode ``loss``.
            mode: ``tensor``, ``loss`` or ``predict``.

        Returns:
            Mode ``tensor``: logits (B, classes). ``loss``: the named losses. ``predict``: for each image its
            ``pred_score``, probabilities (classes,), and its ``gt_label`` where known.

        Raises:
            RecipeError: Another mode.
            SourceError: Mode ``loss`` without labels, or a label the model has no output for.
        """
        if mode == "loss":
            if data_samples is None:
                raise SourceError("training needs labels, but the batch has no data_samples")
            return self._losses(inputs, data_samples)
        logits: Tensor = self.model(inputs)
        if mode == "tensor":
            return logits
        if mode == "predict":
            scores = logits.float().softmax(1)
            if data_samples is None:
                return [{"pred_score": score} for score in scores]
            return [{"pred_score": s, "gt_label": y} for s, y in zip(scores, data_samples, strict=True)]
        raise RecipeError(f"mode is {mode!r}, expected tensor, loss or predict")

    def _losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with recorded(self.model, () if self._teacher is None else self._teacher.blocks) as own:
            logits = self.model(inputs)
        if int(labels.max()) >= logits.shape[1]:  # on CUDA the plain error would end the process's use of the device
            raise SourceError(f"a label is {int(labels.max())}, but the model has {logits.shape[1]} outputs")
        cross_entropy = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self._teacher is None:
            return {"loss_ce": cross_entropy}
        weight, temperature, block_weight = self._distillation
        wanted, targets = self._teacher(inputs)
        distilled = distillation_loss(logits, wanted, temperature=temperature)
        losses = {"loss_ce": (1 - weight) * cross_entropy, "loss_kd": weight * distilled}
        compared, pairs = alike_at(own, targets, outputs=[logits])
        if compared:
            losses["loss_blocks"] = weight * block_weight * feature_loss(*pairs)
        return losses

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of raw images (B, C, H, W), preprocessed as in evaluation."""
        prepared = self.data_preprocessor({"inputs": images}, False)
        return self.model(prepared["inputs"])
