"""How many positions of an image a layer is read at."""

import pytest
import torch

from norton_plugin.calibration import calibrate_
from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.calibration.positions import positions_of, positions_of_layer
from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Calibration
from tests.calibration.test_calibrate import compressed, images, network


@pytest.mark.parametrize(("images", "expected"), [(1000, 32), (100, 82), (1, 8192), (0, 8192)])
def test_more_where_there_are_few_images(images, expected):
    assert positions_of("auto", images=images) == expected
    assert positions_of(7, images=images) == 7


@pytest.mark.parametrize(
    ("shape", "groups", "images", "expected"),
    [
        ((512, 4608), 1, 1000, 32),  # 2e11 / (4608 + 512) / 4608 is 8477 patches, 8 of each image
        ((512, 4608), 1, 11, 770),
        ((48, 432), 1, 200, 4822),  # 0.96 million patches
        ((64, 9), 64, 20, 7680),  # depthwise: 200 MiB hold no more of one image
    ],
)
def test_more_where_a_layer_reads_few_numbers(shape, groups, images, expected):
    weight = torch.zeros(shape)
    assert positions_of_layer("auto", weight, groups=groups, images=images) == expected
    assert positions_of_layer(7, weight, groups=groups, images=images) == 7


def test_no_more_than_the_memory_takes():
    memory = MomentMemory(64 * 2**20)
    most = positions_of_layer("auto", torch.zeros(64, 576), groups=1, images=10, memory=memory)
    assert most == int(0.75 * 16 * 2**20) // (32 * 640)
    x = torch.zeros(1, 64, 40, 40)
    assert memory.images_at_once(x, patches=most * 576, targets=most * 64) == 1


def test_what_is_neither_is_refused():
    with pytest.raises(RecipeError, match="expected a number, or 'auto'"):
        positions_of("many", images=10)


def test_layers_are_read_at_so_many():
    model, batches = network(), images(16)
    samples = {}
    for positions in (4, "auto"):
        report = calibrate_(model, compressed(model), batches, example_inputs=batches[0], positions=positions)
        samples[positions] = {layer.name: layer.samples for layer in report.layers if layer.decomposed}
    fitted_on = report.images
    assert set(samples[4].values()) == {4 * fitted_on}
    assert set(samples["auto"]) == {f"layers.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    assert samples["auto"]["layers.0.conv2"] == fitted_on * 64


def test_in_a_recipe():
    assert Calibration(positions="auto").to_dict()["positions"] == "auto"
    with pytest.raises(RecipeError, match="expected a whole number from 1 to 1000000, or 'auto'"):
        Calibration(positions="all")
