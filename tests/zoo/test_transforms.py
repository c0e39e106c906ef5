import sys

import pytest
import torch
from PIL import Image

from norton_plugin.zoo import Preprocessing
from norton_plugin.zoo.transforms import image_transform


@pytest.fixture(params=["timm", "torchvision"])
def library(request, monkeypatch):
    if request.param == "torchvision":
        monkeypatch.setitem(sys.modules, "timm.data", None)
    return request.param


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_of_the_models_size(library, training, channels):
    transform = image_transform(Preprocessing((channels, 24, 24)), training=training)
    out = transform(Image.new("L" if channels == 1 else "RGB", (50, 40), 128 if channels == 1 else (9, 99, 199)))
    assert out.shape == (channels, 24, 24)
    assert out.dtype == torch.uint8


def test_centre_crop_keeps_the_middle(library):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 0, 30, 20))
    out = image_transform(Preprocessing((3, 20, 20), crop_pct=1.0))(image)
    assert out.float().mean() == 255


def test_training_differs_from_call_to_call(library):
    noise = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
    transform = image_transform(Preprocessing((3, 16, 16)), training=True)
    assert not torch.equal(transform(Image.fromarray(noise)), transform(Image.fromarray(noise)))
