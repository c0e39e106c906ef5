"""The built-in demonstration: scikit-learn's handwritten digits and a small residual network."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.errors import MissingExtraError, NortonError, SourceError
from norton_plugin.zoo.ecosystem import Built, failed_build, no_weights, unknown_model
from norton_plugin.zoo.preprocessing import Preprocessing, resolve_input_size
from norton_plugin.zoo.stored import check_values, label

_SIDE = 16
# of the training images, scaled to [0, 1] and enlarged to 16x16
_MEAN, _STD = (0.3054,), (0.3186,)


class DigitsData(NamedTuple):
    """Images and labels of the digits, split once and for all.

    Attributes:
        train_images: uint8 (1437, 1, 16, 16).
        train_labels: int64 (1437,), 0 to 9.
        test_images: uint8 (360, 1, 16, 16).
        test_labels: int64 (360,), 0 to 9.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> DigitsData:
    """Load scikit-learn's 1797 digits, enlarge them from 8x8 to 16x16, and split them 80/20 by class.

    Returns:
        Images and labels; the split is the same in every run.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("scikit-learn is not installed; run: pip install 'norton-plugin[demo]'") from error
    digits = load()
    small = torch.from_numpy(digits.images).float()[:, None] / 16  # pixel values are 0 to 16
    large = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=digits.target)
    return DigitsData(images[train], labels[train], images[test], labels[test])


class DigitsBlock(nn.Module):
    """Two 3x3 convs of stride 1 with a shortcut, 1x1 where the number of channels changes.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class DigitsNet(nn.Module):
    """Residual network for 1x16x16 digits: stages of 32, 64 and 128 channels with pooling in between.

    Args:
        widths: Channels of the three stages.
        num_classes: Number of outputs.
    """

    def __init__(self, *, widths: Sequence[int] = (32, 64, 128), num_classes: int = 10) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = DigitsBlock(first, first)
        self.layer2 = DigitsBlock(first, second)
        self.layer3 = DigitsBlock(second, third)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, 16, 16) to logits (B, num_classes)."""
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.pool(self.layer2(self.pool(x))))
        return self.fc(x.mean((2, 3)))


def names() -> list[str]:
    """Return the one name."""
    return ["digits"]


def build(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Built:
    """Build the network of the demonstration; arguments as in :func:`norton_plugin.zoo.load_source`.

    Args:
        name: ``digits``.
        pretrained: Not offered: it trains in under a minute.
        num_classes: Number of outputs, 10 when ``None``.
        input_size: Size of the images, 1x16x16 when ``None``.
        kwargs: Further arguments of :class:`DigitsNet`.

    Returns:
        The untrained network.

    Raises:
        SourceError: Unknown name, pretrained asked for, or arguments that do not fit.
    """
    if name not in names():
        raise unknown_model("demo", name, names())
    if pretrained:
        raise no_weights("demo", name, SourceError("none are published; `norton demo` trains it in a minute"))
    arguments = dict(kwargs or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        model = DigitsNet(**arguments)
    except NortonError:
        raise
    except Exception as error:  # of whichever layer the arguments do not fit
        raise failed_build("demo", name, error) from error
    size = resolve_input_size(input_size, (1, _SIDE, _SIDE))
    return Built(model=model, kwargs=arguments, preprocessing=Preprocessing(size, _MEAN, _STD, crop_pct=1.0))


def rebuild(name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build the network of the demonstration from stored arguments, which are sizes alone."""
    if not trust_code:
        check_values(label("demo", name), kwargs)
    return build(name, kwargs=kwargs).model
