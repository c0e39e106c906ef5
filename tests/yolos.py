"""Weights for small YOLOs, and images for them."""

import torch
from torch import Tensor, nn

SIZE, CLASSES = 64, 3


def enliven_(model: nn.Module) -> None:
    """Give norms the statistics of images, boxes that stay within their cells, and classes that vary."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.8, 1.6)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.stack([image(number) for number in range(8)]) / 255)
    for norm in norms:
        norm.momentum = 0.03
    for boxes, scores in zip(model.model[-1].cv2, model.model[-1].cv3, strict=True):
        nn.init.normal_(boxes[-1].weight, std=0.02)
        nn.init.normal_(scores[-1].weight, std=0.6)
        nn.init.constant_(scores[-1].bias, -2.0)
        with torch.no_grad():
            boxes[-1].bias.copy_(torch.linspace(0, -22.5, 16).repeat(4))
    model.eval()


def image(number: int) -> Tensor:
    """Return clouds of colour, (3, SIZE, SIZE) from 0 to 255, other ones for every number."""
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(number))
    return (nn.functional.interpolate(small, SIZE, mode="bilinear")[0] * 255).byte()
