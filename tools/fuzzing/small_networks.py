"""Small random networks with the couplings that matter: sums, concatenations, gates, groups, splits, odd widths."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Plan = list[dict[str, Any]]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "none": nn.Identity,
}
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda width: nn.GroupNorm(next(g for g in (4, 3, 2, 1) if width % g == 0), width),
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    "none": lambda width: nn.Identity(),
}


class Layer(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(self, inputs: int, outputs: int, part: dict[str, Any], *, kernel: int | None = None, groups: int = 1):
        size = part["kernel"] if kernel is None else kernel
        conv = nn.Conv2d(inputs, outputs, size, part["stride"], size // 2, groups=groups, bias=part["bias"])
        super().__init__(conv, _NORMS[part["norm"]](outputs), _ACTIVATIONS[part["activation"]]())


class Stage(nn.Module):
    """One element of a plan.

    Args:
        inputs: Channels that come in.
        part: Its kind and settings; ``width`` channels go out.
    """

    def __init__(self, inputs: int, part: dict[str, Any]) -> None:
        super().__init__()
        self.kind, width = part["kind"], part["width"]
        still = {**part, "stride": 1}
        self.first = Layer(inputs, width, part)
        if self.kind == "residual":
            self.second = Layer(width, width, still)
        elif self.kind == "concat":
            self.second = Layer(inputs, width, {**part, "kernel": 1})
        elif self.kind == "gate":
            self.second = Layer(width, width, {**still, "norm": "none", "activation": "none"}, kernel=1)
        elif self.kind in ("depthwise", "grouped"):
            self.second = Layer(width, width, still, groups=width if self.kind == "depthwise" else 2)
        elif self.kind == "split":
            self.second = Layer(width // 2, width // 2, still)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        y = self.first(x)
        if self.kind == "residual":
            return y + self.second(y)
        if self.kind == "concat":
            return torch.cat([y, self.second(x)], 1)
        if self.kind == "gate":
            return y * torch.sigmoid(self.second(y.mean((2, 3), keepdim=True)))
        if self.kind in ("depthwise", "grouped"):
            return self.second(y)
        if self.kind == "split":
            left, right = y.chunk(2, 1)
            return torch.cat([self.second(left), right], 1)
        return y


class Generated(nn.Module):
    """A network of a plan.

    Args:
        plan: Its stages.
        head: ``mean`` or ``flatten``, and the width of a hidden Linear layer or 0.
    """

    def __init__(self, plan: Plan, head: tuple[str, int]) -> None:
        super().__init__()
        stages, channels = [], 3
        for part in plan:
            stages.append(Stage(channels, part))
            channels = part["width"] * (2 if part["kind"] == "concat" else 1)
        self.stages = nn.Sequential(*stages)
        self.flat, hidden = head[0] == "flatten", head[1]
        self.pool = nn.AdaptiveAvgPool2d(2 if self.flat else 1)
        features = channels * (4 if self.flat else 1)
        self.hidden = nn.Sequential(nn.Linear(features, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.out = nn.Linear(hidden or features, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 5)."""
        return self.out(self.hidden(self.pool(self.stages(x)).flatten(1)))


def random_plan(rng: random.Random) -> tuple[Plan, tuple[str, int]]:
    """Draw the arguments of ``Generated``."""
    plan = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.choice(("plain", "residual", "residual", "concat", "gate", "depthwise", "grouped", "split"))
        width = rng.choice((4, 6, 7, 11, 12, 16, 24))
        if kind in ("grouped", "split"):
            width += width % 2
        plan.append(
            {
                "kind": kind,
                "width": width,
                "kernel": rng.choice((1, 3, 3, 5)),
                "stride": rng.choice((1, 1, 2)),
                "bias": rng.random() < 0.5,
                "norm": rng.choice(("batch", "batch", "group", "instance", "none")),
                "activation": rng.choice(tuple(_ACTIVATIONS)),
            }
        )
    return plan, (rng.choice(("mean", "flatten")), rng.choice((0, 9, 16)))


def settled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return the model in eval mode with random norms: fresh ones are identities and hide mistakes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval()
