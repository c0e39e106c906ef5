"""The settings of a fine-tuning run."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from torch import nn

from norton_plugin.errors import RecipeError
from norton_plugin.mm.runner.levels import OPTIMIZERS, OptimizerChoice, default_choice, level_of
from norton_plugin.mm.runner.optimizer import FactorDecay, check_factor_decay

# Settings that the level of the model decides where they are None.
_BY_LEVEL = tuple(field.name for field in dataclasses.fields(OptimizerChoice))


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the training images, at least 1.
        lr: Learning rate after warm-up, above 0; ``None`` for that of the model's level and the optimizer
            (``mm/runner/levels.py`` has the table). From a pruned model start at a tenth of the rate it was first
            trained with; much higher rates undo the compression's starting point.
        batch_size: Images per step, at least 1.
        optimizer: ``SGD`` (Nesterov) or ``AdamW``; ``None`` for AdamW where the model has blocks, SGD elsewhere.
        momentum: Of SGD, or the first beta of AdamW, in [0, 1); ``None`` as for ``lr``.
        weight_decay: At least 0; ``None`` as for ``lr``.
        factor_decay: Multiplier of ``weight_decay`` for factors, at least 0, or ``"auto"``: one over the number of
            factors of a weight; see :func:`norton_plugin.mm.parameter_groups`.
        warmup_epochs: Epochs, possibly a fraction, over which the rate rises linearly from a tenth; below ``epochs``;
            ``None`` as for ``lr``.
        final_lr: Share of ``lr`` reached at the end of the cosine, in [0, 1].
        label_smoothing: In [0, 1).
        crop_padding: Pixels of padding for random crops in training; 0 for none.
        flip: Mirror half of the images in training.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        ema: Momentum of a moving average of the weights, in [0, 1), such as 0.001; 0 for none.
        amp: float16 training with loss scaling; on CUDA devices only (bfloat16 is slower than float32 on most CPUs).
        distill_weight: Share of the distillation loss when there is a teacher, in [0, 1]; the default gave most in
            docs/method.md, section 4.
        distill_block_weight: Of the squared error of the blocks' outputs in that loss, beside the logits, at least 0;
            they gave nothing in the eight epochs of docs/method.md, section 4.
        temperature: Of distillation, above 0.
        val_interval: Epochs between evaluations; the last epoch is always evaluated.
        num_workers: Processes that load data; 0 is fastest for packed images.
        channels_last: Train in channels-last memory format, 1.5 to 3 times as fast for convs; a model that does not run
            so, as one that takes views of maps, is trained in contiguous format.
        seed: Of shuffling, augmentation and dropout.
    """

    epochs: int = 1
    lr: float | None = None
    batch_size: int = 128
    optimizer: str | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    factor_decay: FactorDecay = "auto"
    warmup_epochs: float | None = None
    final_lr: float = 0.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    clip_grad: float = 0.0
    ema: float = 0.0
    amp: bool = False
    distill_weight: float = 0.9
    distill_block_weight: float = 0.0
    temperature: float = 4.0
    val_interval: int = 1
    num_workers: int = 0
    channels_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"epochs": 1, "batch_size": 1, "val_interval": 1, "crop_padding": 0, "num_workers": 0, "seed": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            self._require(name, isinstance(value, int) and value >= least, f"an integer of at least {least}")
        for name in ("weight_decay", "clip_grad", "warmup_epochs", "distill_block_weight"):
            self._require(name, self._open(name) or 0 <= getattr(self, name) < float("inf"), "a number of at least 0")
        for name in ("lr", "temperature"):
            self._require(name, self._open(name) or 0 < getattr(self, name) < float("inf"), "a number above 0")
        for name in ("momentum", "label_smoothing", "ema"):
            self._require(name, self._open(name) or 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("final_lr", "distill_weight"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        check_factor_decay(self.factor_decay)
        known = self.optimizer is None or self.optimizer in OPTIMIZERS
        self._require("optimizer", known, f"one of {', '.join(OPTIMIZERS)}")
        short = self.warmup_epochs is None or self.warmup_epochs < self.epochs
        self._require("warmup_epochs", short, f"below epochs ({self.epochs})")

    def _open(self, name: str) -> bool:
        return name in _BY_LEVEL and getattr(self, name) is None

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise RecipeError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    @property
    def distillation(self) -> dict[str, float]:
        """What ``TimmClassifier.set_teacher`` is given."""
        weights = {"weight": self.distill_weight, "block_weight": self.distill_block_weight}
        return {**weights, "temperature": self.temperature}

    def choice_for(self, model: nn.Module) -> OptimizerChoice:
        """Return what to train a model with: the settings that are given, and its level's defaults for the others."""
        default = default_choice(level_of(model), self.optimizer, epochs=self.epochs)
        given = {name: getattr(self, name) for name in _BY_LEVEL if getattr(self, name) is not None}
        return dataclasses.replace(default, **given)

    def replace(self, **changes: Any) -> "FinetuneSettings":
        """Return a copy with some values changed.

        Raises:
            RecipeError: A name is unknown (the nearest is given), or a value is out of its range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise RecipeError(
                    f"unknown fine-tuning setting {name!r}; "
                    + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}")
                )
        return dataclasses.replace(self, **changes)
