"""Batches of images: their sizes, those held back, and parts of few images."""

import pytest
import torch
from torch import nn

from norton_plugin.calibration import batches, fisher_weights
from norton_plugin.calibration.batches import batch_size, parts_of, split_batches
from tests.calibration.test_calibrate import images, network


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(batches, "_NUMBERS", 2 * 3 * 8 * 8)


def sizes(parts):
    return [len(part) for part in parts]


def test_a_tensor_alone_or_in_a_structure():
    x = torch.randn(5, 3, 8, 8)
    assert sizes(parts_of(x)) == [2, 2, 1] and torch.equal(torch.cat(parts_of(x)), x)
    found = parts_of({"x": x})
    assert sizes(part["x"] for part in found) == [2, 2, 1] and torch.equal(torch.cat([part["x"] for part in found]), x)
    assert [len(part) for (part,) in parts_of((x,))] == [2, 2, 1]
    whole = (x[:2],)
    assert parts_of(whole)[0] is whole


def test_lists_of_single_images_are_cut_between_images():
    batch = [torch.full((3, 8, 8), float(i)) for i in range(3)]  # as many as an image has channels
    assert [[float(image.mean()) for image in part] for part in parts_of(batch)] == [[0.0, 1.0], [2.0]]


@pytest.mark.parametrize("other", [torch.randn(5, 2), torch.randn(2), "words", list(range(5))])
def test_what_belongs_to_which_image_is_not_guessed(other):
    batch = {"x": torch.randn(5, 3, 8, 8), "other": other}
    assert parts_of(batch) == [batch]
    assert parts_of("text") == ["text"]


def test_fisher_weights_are_those_of_whole_batches(monkeypatch):
    """With noise drawn alike, so that only the cut differs."""
    model, given = network(), images(16)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    found = []
    for numbers in (2 * 3 * 8 * 8, 10**9):
        monkeypatch.setattr(batches, "_NUMBERS", numbers)
        monkeypatch.setattr(
            "norton_plugin.calibration.fisher._drawn_likelihood", lambda outputs, _: outputs[0][:, 0].sum()
        )
        found.append(fisher_weights(model, layers, given, call=lambda own, x: own(x)))
    assert seen == [2, 2, 2, 2, 2, 2, 2, 2, 2, 8, 8, 8]  # each time the first batch once more
    for name, weights in found[0].items():
        torch.testing.assert_close(weights, found[1][name])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(8, 3, 4, 4), 8),
        ((torch.zeros(8, 4, 128),), 8),  # of a 1-D network
        ((torch.zeros(8, 4),), 8),
        (({"image": torch.zeros(8, 3, 4, 4)},), 8),
        (([torch.zeros(8, 3, 4, 4)],), 8),
        (([torch.zeros(3, 4, 4)] * 5,), 5),
        ([torch.zeros(3, 4, 4)] * 5, 5),
        ({"words": "a", "x": torch.zeros(8, 3)}, 8),
        (("words", torch.zeros(8, 3)), 8),
        ({"inputs": [torch.zeros(3, 4, 4)] * 5, "data_samples": [None] * 5}, 5),
        ((), 1),
        ("words", 1),
    ],
)
def test_images_of_a_batch(batch, expected):
    assert batch_size(batch) == expected


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([4], []),
        ([2, 2], [2]),
        ([4] * 8, [4]),
        ([4] * 17, [4, 4]),
        ([8, 3], [3]),
        ([2, 5, 64], [2]),
    ],
)
def test_one_batch_in_eight_and_never_more_than_half_of_the_images(sizes, held):
    given = [torch.zeros(size, 3, 4, 4) for size in sizes]
    fitted_on, others = split_batches(given)
    assert [len(batch) for batch in others] == held
    assert sorted(len(batch) for batch in [*fitted_on, *others]) == sorted(sizes)
