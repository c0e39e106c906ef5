"""Learning from the dense model: losses, and short training on unlabelled images as a step of ``compress``."""

from norton_plugin.distillation.distill import DistillationReport, distill_
from norton_plugin.distillation.losses import distillation_loss, feature_loss

__all__ = ["DistillationReport", "distill_", "distillation_loss", "feature_loss"]
