"""How many positions of an image a layer is read at."""

import pytest

from norton_plugin.calibration import calibrate_
from norton_plugin.calibration.positions import positions_of
from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Calibration
from tests.calibration.test_calibrate import compressed, images, network


@pytest.mark.parametrize(
    ("images", "inputs", "expected"),
    [
        (1000, None, 32),
        (1000, 4608, 32),  # 2e11 / 4608^2 is 9419 patches, 9 of each image
        (100, None, 82),  # 8192 patches
        (11, 4608, 856),  # 9419 patches
        (200, 432, 5358),  # 2e11 / 432^2 is 1.07 million patches
    ],
)
def test_auto(images, inputs, expected):
    assert positions_of("auto", images=images, inputs=inputs) == expected
    assert positions_of(7, images=images, inputs=inputs) == 7


def test_layers_are_read_at_so_many():
    model, batches = network(), images(16)
    samples = {}
    for positions in (4, "auto"):
        report = calibrate_(model, compressed(model), batches, example_inputs=batches[0], positions=positions)
        samples[positions] = {layer.name: layer.samples for layer in report.layers if layer.decomposed}
    fitted_on = report.images
    assert set(samples[4].values()) == {4 * fitted_on}
    assert all(found == fitted_on * 64 for name, found in samples["auto"].items() if name.startswith("layers.0"))


def test_in_a_recipe():
    assert Calibration(positions="auto").to_dict()["positions"] == "auto"
    with pytest.raises(RecipeError, match="expected a whole number from 1 to 1000000, or 'auto'"):
        Calibration(positions="all")
