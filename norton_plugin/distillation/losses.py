"""How far the outputs of a model are from those that it learns from: pure functions of tensors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over all feature maps of ||s - t||^2 / ||t||^2.

    Romero et al., "FitNets: Hints for Thin Deep Nets", with equal widths and scaled by the teacher's features, so
    that maps of every level count alike.

    Args:
        student: Feature maps of any shape, at least one.
        teacher: As many, of the same shapes.

    Returns:
        A scalar without unit, in float32 at least; 0 where all are equal.
    """
    errors = []
    for own, target in zip(student, teacher, strict=True):
        own, target = own.float(), target.float()
        errors.append((own - target).square().sum() / target.square().sum().clamp_min(1e-12))
    return torch.stack(errors).mean()
