"""The networks of the paper for CIFAR-10: ResNet-20/56, VGG-16-BN and DenseNet-40, for 3x32x32 images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.errors import NortonError, SourceError
from norton_plugin.zoo.ecosystem import Built, failed_build, no_weights, unknown_model
from norton_plugin.zoo.preprocessing import Preprocessing, resolve_input_size
from norton_plugin.zoo.stored import check_values, label

_INPUT_SIZE = (3, 32, 32)


class PadShortcut(nn.Module):
    """Shortcut without parameters: every second pixel, missing channels filled with zeros on both sides.

    Option A of He et al., "Deep Residual Learning for Image Recognition", section 4.2.

    Args:
        padding: Number of zero channels before and after the input's channels.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + 2 * padding, ceil(H / 2), ceil(W / 2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))

    def extra_repr(self) -> str:
        """Show the number of zero channels on each side."""
        return f"padding={self.padding}"


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first conv, 1 or 2.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        plain = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if plain else PadShortcut((channels - in_channels) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for CIFAR of depth 6 * ``blocks`` + 2 (He et al., section 4.2).

    Args:
        blocks: Blocks in each of the three stages.
        num_classes: Number of outputs.
    """

    def __init__(self, blocks: int, *, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        _init_convs_(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class VGG(nn.Module):
    """VGG-16 with batch normalisation for CIFAR: 13 convs with bias and two linear layers.

    Args:
        num_classes: Number of outputs.
    """

    _widths = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)

    def __init__(self, *, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self._widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers, nn.AvgPool2d(2))
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, num_classes)
        )
        _init_convs_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) to logits (B, num_classes)."""
        return self.classifier(torch.flatten(self.features(x), 1))


class DenseLayer(nn.Module):
    """BN, ReLU and a 3x3 conv whose output is appended to the input.

    Args:
        in_channels: Channels of the input.
        growth: Channels appended.
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, in_channels + growth, H, W)."""
        return torch.cat((x, self.conv1(F.relu(self.norm1(x)))), 1)


class Transition(nn.Module):
    """BN, ReLU, a 1x1 conv that keeps the number of channels, and 2x2 average pooling.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-40 for CIFAR (Huang et al., "Densely Connected Convolutional Networks", section 4).

    Args:
        growth: Channels each layer appends.
        layers: Layers in each of the three blocks.
        num_classes: Number of outputs.
    """

    def __init__(self, *, growth: int = 12, layers: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, channels, 3, padding=1, bias=False))
        for block in (1, 2, 3):
            widths = [channels + growth * i for i in range(layers)]
            self.features.add_module(f"denseblock{block}", nn.Sequential(*(DenseLayer(w, growth) for w in widths)))
            channels += growth * layers
            if block < 3:
                self.features.add_module(f"transition{block}", Transition(channels))
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        _init_convs_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) to logits (B, num_classes)."""
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


def _init_convs_(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet20(*, num_classes: int = 10) -> ResNet:
    """Build ResNet-20."""
    return ResNet(3, num_classes=num_classes)


def resnet56(*, num_classes: int = 10) -> ResNet:
    """Build ResNet-56."""
    return ResNet(9, num_classes=num_classes)


def vgg16_bn(*, num_classes: int = 10) -> VGG:
    """Build VGG-16-BN."""
    return VGG(num_classes=num_classes)


def densenet40(*, num_classes: int = 10) -> DenseNet:
    """Build DenseNet-40 with growth 12."""
    return DenseNet(num_classes=num_classes)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg16_bn": vgg16_bn,
    "densenet40": densenet40,
}


def names() -> list[str]:
    """Return the four names."""
    return list(_BUILDERS)


def build(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Built:
    """Build a network of the paper; arguments as in :func:`norton_plugin.zoo.load_source`.

    Args:
        name: ``resnet20``, ``resnet56``, ``vgg16_bn`` or ``densenet40``.
        pretrained: Not offered: pass a checkpoint.
        num_classes: Number of outputs, 10 when ``None``.
        input_size: Size of the images, 3x32x32 when ``None``.
        kwargs: Further arguments of the constructor.

    Returns:
        The model; its images are normalised as ImageNet's are.

    Raises:
        SourceError: Unknown name, pretrained asked for, or arguments that do not fit.
    """
    if name not in _BUILDERS:
        raise unknown_model("cifar", name, names())
    if pretrained:
        raise no_weights("cifar", name, SourceError("none are published with this package"))
    arguments = dict(kwargs or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        model = _BUILDERS[name](**arguments)
    except NortonError:
        raise
    except Exception as error:  # of whichever layer the arguments do not fit
        raise failed_build("cifar", name, error) from error
    size = resolve_input_size(input_size, _INPUT_SIZE)
    return Built(model=model, kwargs=arguments, preprocessing=Preprocessing(size, crop_pct=1.0))


def rebuild(name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build a network of the paper from stored arguments, which are sizes alone."""
    if not trust_code:
        check_values(label("cifar", name), kwargs)
    return build(name, kwargs=kwargs).model
