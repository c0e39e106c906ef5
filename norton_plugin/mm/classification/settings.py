"""The settings of a fine-tuning run."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from norton_plugin.errors import RecipeError

_OPTIMIZERS = ("SGD", "AdamW")


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the training images, at least 1.
        lr: Learning rate after warm-up, above 0. From a compressed model start at a tenth of the rate the model was
            first trained with; much higher rates undo the compression's starting point.
        batch_size: Images per step, at least 1.
        optimizer: ``SGD`` (Nesterov) or ``AdamW``.
        momentum: Of SGD, in [0, 1).
        weight_decay: At least 0.
        factor_decay: Multiplier of ``weight_decay`` for CPD factors, at least 0; see
            :func:`norton_plugin.mm.parameter_groups`.
        warmup_epochs: Epochs, possibly a fraction, over which the rate rises linearly from a tenth; below ``epochs``.
        final_lr: Share of ``lr`` reached at the end of the cosine, in [0, 1].
        label_smoothing: In [0, 1).
        crop_padding: Pixels of padding for random crops in training; 0 for none.
        flip: Mirror half of the images in training.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        ema: Momentum of a moving average of the weights, in [0, 1), such as 0.001; 0 for none.
        amp: float16 training with loss scaling; on CUDA devices only (bfloat16 is slower than float32 on most CPUs).
        distill_weight: Share of the distillation loss when there is a teacher, in [0, 1].
        temperature: Of distillation, above 0.
        val_interval: Epochs between evaluations; the last epoch is always evaluated.
        num_workers: Processes that load data; 0 is fastest for packed images.
        channels_last: Train in channels-last memory format, 1.5 to 3 times as fast for convs.
        seed: Of shuffling, augmentation and dropout.
    """

    epochs: int = 1
    lr: float = 0.01
    batch_size: int = 128
    optimizer: str = "SGD"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    factor_decay: float = 1 / 3
    warmup_epochs: float = 0.0
    final_lr: float = 0.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    clip_grad: float = 0.0
    ema: float = 0.0
    amp: bool = False
    distill_weight: float = 0.5
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
        for name in ("weight_decay", "factor_decay", "clip_grad", "warmup_epochs"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "a number of at least 0")
        for name in ("lr", "temperature"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "a number above 0")
        for name in ("momentum", "label_smoothing", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("final_lr", "distill_weight"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("optimizer", self.optimizer in _OPTIMIZERS, f"one of {', '.join(_OPTIMIZERS)}")
        self._require("warmup_epochs", self.warmup_epochs < self.epochs, f"below epochs ({self.epochs})")

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise RecipeError(f"{name} is {getattr(self, name)!r}, expected {expected}")

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
