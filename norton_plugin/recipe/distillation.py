"""What a compressed model learns from the dense one on unlabelled images, before any training."""

from __future__ import annotations

from dataclasses import dataclass

from norton_plugin.recipe.section import Section, check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Distillation(Section):
    """Short training of the whole compressed model towards the dense one's outputs (docs/method.md, section 3).

    Attributes:
        passes: Over the calibration images, of which one batch in eight is held back; 0 for no distillation.
        lr: Highest rate of Adam; the factors of a fitted model stand low rates only. Where it does not help, 0.3 and
            then 0.09 of it are tried.
        temperature: Of the softmax over logits, above 0.
        block_weight: Of the squared error of the blocks' outputs beside that of the model's outputs; 0 leaves it out.
        seed: Of the order of the batches.
    """

    passes: int = 0
    lr: float = 1e-4
    temperature: float = 2.0
    block_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("distillation.passes", self.passes, low=0, high=100_000)
        check_number("distillation.lr", self.lr, low=0, high=1, open_low=True)
        check_number("distillation.temperature", self.temperature, low=0, high=1000, open_low=True)
        check_number("distillation.block_weight", self.block_weight, low=0, high=1e6)
        check_integer("distillation.seed", self.seed, low=0, high=2**63 - 1)

    @property
    def active(self) -> bool:
        """Whether it is asked for."""
        return self.passes > 0
