import pytest
import torch

from norton_plugin.zoo import load_source

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'norton-plugin[demo]'")


def test_digits_are_split_once_and_for_all():
    from norton_plugin.zoo.demo import load_digits

    data, again = load_digits(), load_digits()
    assert data.train_images.shape == (1437, 1, 16, 16)
    assert data.test_images.shape == (360, 1, 16, 16)
    assert data.train_images.dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(data, again, strict=True))
    # every class has 174 to 183 of the 1797 images: a fifth of each is in the test set
    assert data.test_labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_the_normalisation_is_that_of_the_training_images():
    from norton_plugin.zoo.demo import load_digits

    pixels = load_digits().train_images.float() / 255
    source = load_source("demo:digits")
    assert source.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert source.std[0] == pytest.approx(float(pixels.std()), abs=1e-4)


def test_size_of_the_network():
    source = load_source("demo:digits")
    assert sum(p.numel() for p in source.model.parameters()) == 308_074
    convs = [m for m in source.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [c.out_channels for c in convs] == [32, 32, 32, 64, 64, 128, 128]
