"""Transforms of images against Pillow by hand, by timm's functions and by torchvision's alike."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from norton_plugin.zoo import Preprocessing
from norton_plugin.zoo.transforms import image_transform

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
COLOUR = (9, 99, 199)


@pytest.fixture(params=["timm", "torchvision"])
def library(request, monkeypatch):
    if request.param == "torchvision":
        monkeypatch.setitem(sys.modules, "timm.data", None)
    else:
        pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    return request.param


def resized_and_cropped(image: Image.Image, sides: tuple[int, int], crop_pct: float, name: str) -> torch.Tensor:
    """The smallest image of unchanged proportions that covers sides / crop_pct, and the middle of it."""
    height, width = (math.floor(side / crop_pct) for side in sides)
    ratio = min(Fraction(image.height, height), Fraction(image.width, width))
    whole = int if height == width else round  # torchvision cuts off, timm's resize for oblong crops rounds
    image = image.resize((whole(image.width / ratio), whole(image.height / ratio)), FILTERS[name])
    left, top = round((image.width - sides[1]) / 2), round((image.height - sides[0]) / 2)
    pixels = np.asarray(image.crop((left, top, left + sides[1], top + sides[0])))
    return torch.from_numpy(pixels.reshape(*sides, -1).transpose(2, 0, 1).copy())


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [
        ((3, 24, 24), 0.875, "bilinear"),
        ((3, 20, 20), 0.875, "bicubic"),  # 20 / 0.875 = 22.86 is 22
        ((1, 24, 24), 1.0, "nearest"),
        ((3, 16, 24), 0.8, "bilinear"),
        ((1, 30, 20), 0.9, "bicubic"),
    ],
)
@pytest.mark.parametrize("shape", [(40, 50), (61, 37)])
def test_evaluation_resizes_and_takes_the_middle(library, size, crop_pct, interpolation, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("L" if size[0] == 1 else "RGB")
    transform = image_transform(Preprocessing(size, interpolation=interpolation, crop_pct=crop_pct))
    out = transform(image)
    assert out.dtype == torch.uint8
    assert torch.equal(out, resized_and_cropped(image, size[1:], crop_pct, interpolation))


def test_centre_crop_keeps_the_middle(library):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 0, 30, 20))
    out = image_transform(Preprocessing((3, 20, 20), crop_pct=1.0))(image)
    assert torch.equal(out, torch.full((3, 20, 20), 255, dtype=torch.uint8))


@pytest.mark.parametrize("axis", [1, 2])
def test_training_takes_parts_and_mirrors_left_and_right_alone(library, axis):
    """Of a picture that grows brighter along one axis, every part does, and that along the other is even."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (64, 64))
    image = Image.fromarray(np.ascontiguousarray(ramp if axis == 2 else ramp.T))
    transform = image_transform(Preprocessing((1, 16, 16)), training=True)
    spans = []
    for _ in range(40):
        out = transform(image)
        assert out.shape == (1, 16, 16) and out.dtype == torch.uint8
        line = out.select(3 - axis, 0)[0].int()
        assert torch.equal(out[0].int(), line.expand(16, 16) if axis == 2 else line[:, None].expand(16, 16))
        steps = line.diff()
        assert (steps >= 0).all() or (steps <= 0).all()
        spans.append(int(line[-1] - line[0]))
    # A part holds 8 to 100 % of the area at 3:4 to 4:3, so at least a quarter of a side and at most all of it.
    shares = [abs(span) / 252 for span in spans]
    assert 0.2 < min(shares) < 0.6 < max(shares) <= 1
    assert {span > 0 for span in spans} == ({True, False} if axis == 2 else {True})


def test_colours_in_training(library):
    """timm's transform changes brightness, contrast and saturation; torchvision's leaves colours as they are."""
    transform = image_transform(Preprocessing((3, 16, 16)), training=True)
    outs = torch.stack([transform(Image.new("RGB", (50, 40), COLOUR)) for _ in range(8)])
    found = outs[..., 0, 0]
    assert torch.equal(outs, found[..., None, None].expand(8, 3, 16, 16))
    kept = (found == torch.tensor(COLOUR)).all(1)
    assert kept.all() if library == "torchvision" else not kept.any()
    assert (found.int().diff(dim=1) > 0).all()  # still more blue than green than red
