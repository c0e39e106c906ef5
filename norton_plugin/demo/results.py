"""The numbers of the demonstration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DenseResult:
    """The trained network.

    Attributes:
        accuracy: On the test images, in percent.
        macs: Of one image.
        parameters: Numbers in its parameters.
        seconds: Training time.
    """

    accuracy: float
    macs: int
    parameters: int
    seconds: float


@dataclass(frozen=True)
class CompressedResult:
    """One compressed network.

    Attributes:
        name: Of its artefact.
        recipe: Rank and keep ratio in words.
        accuracy_before: After re-estimation of BatchNorm statistics, before fine-tuning, in percent.
        accuracy_after: After fine-tuning, in percent.
        macs: Of one image.
        parameters: Numbers in its parameters.
        latency_ratio: The dense network's latency over its own.
        seconds: Compression and fine-tuning time.
    """

    name: str
    recipe: str
    accuracy_before: float
    accuracy_after: float
    macs: int
    parameters: int
    latency_ratio: float
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """All numbers of the demonstration.

    Attributes:
        dense: The trained network.
        compressed: The compressed ones, largest first.
        train_images: Number of training images.
        test_images: Number of test images.
        latency_batch: Images per timed call.
        seed: Of all random choices.
        quick: Whether training was cut short.
    """

    dense: DenseResult
    compressed: tuple[CompressedResult, ...]
    train_images: int
    test_images: int
    latency_batch: int
    seed: int
    quick: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)
