"""The demonstration's data against scikit-learn's own, and its network against sums by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_plugin.zoo import load_source
from norton_plugin.zoo.demo import DigitsBlock, load_digits

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'norton-plugin[demo]'")


def twice_as_long(values: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at a quarter to either side of every value; the ends are repeated."""
    values = np.moveaxis(values, axis, -1)
    left = np.concatenate([values[..., :1], values[..., :-1]], -1)
    right = np.concatenate([values[..., 1:], values[..., -1:]], -1)
    pairs = np.stack([0.25 * left + 0.75 * values, 0.75 * values + 0.25 * right], -1)
    return np.moveaxis(pairs.reshape(*values.shape[:-1], -1), -1, axis)


def test_images_are_scikit_learns_enlarged_and_each_is_in_one_part():
    from sklearn.datasets import load_digits as original

    digits = original()
    large = twice_as_long(twice_as_long(digits.images / 16, 1), 2)
    expected = np.rint(large * 255).astype(np.uint8)
    data = load_digits()
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_images.shape == (1437, 1, 16, 16) and data.test_images.shape == (360, 1, 16, 16)
    images = torch.cat([data.train_images, data.test_images]).flatten(1).numpy()
    labels = torch.cat([data.train_labels, data.test_labels]).numpy()
    found, wanted = (
        sorted((int(label), image.tobytes()) for image, label in zip(*pair, strict=True))
        for pair in ((images, labels), (expected.reshape(1797, -1), digits.target))
    )
    assert found == wanted


def test_digits_are_split_once_and_for_all():
    data, again = load_digits(), load_digits()
    assert all(torch.equal(a, b) for a, b in zip(data, again, strict=True))
    # every class has 174 to 183 of the 1797 images: a fifth of each is in the test set
    assert data.test_labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_the_normalisation_is_that_of_the_training_images():
    pixels = load_digits().train_images.float() / 255
    source = load_source("demo:digits")
    assert source.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert source.std[0] == pytest.approx(float(pixels.std()), abs=1e-4)


def test_size_of_the_network():
    source = load_source("demo:digits")
    assert sum(p.numel() for p in source.model.parameters()) == 308_074
    convs = [m for m in source.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [c.out_channels for c in convs] == [32, 32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize("channels", [2, 3])
def test_a_block_adds_its_input_by_hand(channels):
    """One convolution shifts a channel by a pixel, the other passes it on; their norms scale by 2 and 3."""
    block = DigitsBlock(2, channels).eval()
    with torch.no_grad():
        for conv, tap, norm, scale in ((block.conv1, 0, block.bn1, 2.0), (block.conv2, 1, block.bn2, 3.0)):
            conv.weight.zero_()
            conv.weight[0, 0, 1, tap] = 1
            norm.weight.fill_(scale)
        if channels == 3:
            block.downsample[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]])[..., None, None])
        x = torch.tensor([[1.0, -2, 3], [4, 5, -6]]).view(1, 2, 1, 3)
        found = block(x)[0, :, 0]
    scale = (1 + block.bn1.eps) ** -0.5
    moved = torch.tensor([0, 6 * scale**2, 0])  # 3 * relu(2 * (0, 1, -2))
    rows = [torch.tensor([1.0, -2, 3]), torch.tensor([4.0, 5, -6])]
    shortcut = [*rows, rows[0] + rows[1]][:channels]
    if channels == 3:
        shortcut = [row * scale for row in shortcut]
    shortcut[0] = shortcut[0] + moved
    torch.testing.assert_close(found, torch.stack(shortcut).relu())


def test_the_network_runs_its_stages_at_16_8_and_4_pixels():
    """Each stage sees the largest of every 2 x 2 of the one before; the head sees the mean of the last one."""
    model = load_source("demo:digits").model
    inputs, outputs = {}, {}
    names = {model.get_submodule(name): name for name in ("layer1", "layer2", "layer3", "fc")}

    def remember(module, args, output):
        inputs[names[module]], outputs[names[module]] = args[0], output

    for module in names:
        module.register_forward_hook(remember)
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(x)
        stem = nn.Sequential(model.conv1, model.bn1, nn.ReLU())(x)
    assert inputs["layer1"].shape[2:] == (16, 16) and torch.equal(inputs["layer1"], stem)
    for before, after in (("layer1", "layer2"), ("layer2", "layer3")):
        assert torch.equal(inputs[after], F.max_pool2d(outputs[before], 2))
    torch.testing.assert_close(inputs["fc"], outputs["layer3"].flatten(2).mean(2))
    assert outputs["layer3"].shape == (2, 128, 4, 4) and torch.equal(logits, outputs["fc"])
