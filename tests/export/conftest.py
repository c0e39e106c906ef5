"""A small network, and its compressed copies."""

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Decomposition, compress
from norton_plugin.recipe import Recipe


class Small(nn.Module):
    """Two convolutions with norms, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 5)."""
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small().eval()
    for norm in (model.norm, model.norm2):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model


@pytest.fixture
def example() -> Tensor:
    return torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def compressed(small: nn.Module, example: Tensor) -> nn.Module:
    return compress(small, example, Recipe(decomposition=Decomposition(rank=2)))[0]


@pytest.fixture(autouse=True, scope="module")
def _needs_runtimes() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name, reason="needs pip install 'norton-plugin[export]'")
