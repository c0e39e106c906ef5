"""Top-k accuracy."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from norton_plugin.errors import RecipeError


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Count, for each image, the classes that score at least as high as its label.

    Ties count against the model, so that constant outputs do not look right by luck; so do NaN scores.

    Args:
        scores: (B, classes).
        labels: int64 (B,).

    Returns:
        int64 (B,): 0 where the label scores highest; an image is right at top-k where this is below k.
    """
    own = scores.gather(1, labels[:, None])
    return (~(scores < own)).sum(1) - 1


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Share of images, in percent, whose label is among the ``k`` best scores.

    Args:
        topk: Values of k, each at least 1.
        collect_device: Where results of several processes are gathered, ``cpu`` or ``gpu``.
        prefix: Put before the names ``top1``, ``top5``...; ``accuracy`` when ``None``.
    """

    default_prefix = "accuracy"

    def __init__(
        self, topk: int | Sequence[int] = (1, 5), *, collect_device: str = "cpu", prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise RecipeError(f"topk is {topk!r}, expected one or more integers of at least 1")

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Note the ranks of one batch.

        Args:
            data_batch: Not used.
            data_samples: For each image ``pred_score`` (classes,) and ``gt_label``.
        """
        scores = torch.stack([torch.as_tensor(sample["pred_score"]) for sample in data_samples])
        labels = torch.stack([torch.as_tensor(sample["gt_label"]).reshape(()) for sample in data_samples])
        self.results.extend(label_ranks(scores, labels.to(scores.device)).tolist())

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Turn ranks into percentages.

        Args:
            results: Rank of every image.

        Returns:
            ``top1``, ``top5``..., each in [0, 100].
        """
        ranks = torch.tensor(results)
        return {f"top{k}": 100 * int((ranks < k).sum()) / len(ranks) for k in self.topk}
