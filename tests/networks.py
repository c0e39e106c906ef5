"""Small networks with the couplings that matter."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with a norm of either kind."""

    def __init__(self, width: int, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class Residual(nn.Module):
    """Stem, two residual blocks, head."""

    def __init__(self, width: int = 16, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layers = nn.Sequential(Block(width, norm), Block(width, norm))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation, a grouped convolution, a depthwise one and a flattened Linear."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, 8, 1)
        self.fc = nn.Linear(8 * 16, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        y = torch.cat([a, torch.relu(self.b(a))], 1)
        # An extra pointwise step would align the groups; here the grouped convolution reads a concatenation.
        y = torch.relu(self.pointwise(self.depthwise(self.grouped(y))))
        return self.out(torch.relu(self.fc(nn.functional.adaptive_avg_pool2d(y, 4).flatten(1))))


def settle(model: nn.Module) -> nn.Module:
    """Random norms: fresh ones are identities and would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval()
