"""Knowledge distillation: learn from the uncompressed model's outputs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", section 2.

    Args:
        student: Logits (B, classes).
        teacher: Logits (B, classes).
        temperature: T, above 0.

    Returns:
        A scalar, in nats.
    """
    target = F.log_softmax(teacher / temperature, 1)
    guess = F.log_softmax(student / temperature, 1)
    return F.kl_div(guess, target, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """A frozen model that no one owns: it appears in no state dict and is not copied with its student.

    Args:
        model: The model to learn from; set to eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        """Share the teacher between a model and its moving average."""
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (B, classes) for images (B, C, H, W)."""
        logits: Tensor = self.model(images)
        return logits
