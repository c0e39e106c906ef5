"""Images drawn from a folder: the same for a seed, normalised, with classes where there are some."""

import pytest
import torch

pytest.importorskip("torchvision", reason="transforms need it")
from PIL import Image

from norton_plugin.errors import SourceError
from norton_plugin.zoo import Preprocessing
from norton_plugin.zoo.image_sample import sample_images

SMALL = Preprocessing((3, 4, 4), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_pct=1.0)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)


def test_classes_are_those_of_the_folders(tmp_path):
    for index in range(6):
        write(tmp_path / ("dark" if index < 3 else "light") / f"{index}.png", 255 * (index >= 3))
    sample = sample_images(tmp_path, SMALL, count=5)
    assert len(sample.images) == len(sample.labels) == 5
    for image, label in zip(sample.images, sample.labels, strict=True):
        # 0 or 1, less the mean, over the standard deviation
        assert torch.equal(image, torch.full((1, 3, 4, 4), 2.0 if label else -2.0))
    assert sample_images(tmp_path, SMALL, count=5).labels == sample.labels
    assert torch.equal(sample.images[1:3][0], sample.images[1])


def test_a_flat_folder_has_no_classes_and_broken_files_are_named(tmp_path):
    write(tmp_path / "a.png", 255)
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not asked for")
    sample = sample_images(tmp_path, SMALL, count=5)
    assert (len(sample.images), sample.labels) == (1, None)
    (reason,) = sample.skipped
    assert "b.png" in reason and "cannot be read as an image" in reason


def test_nothing_to_read(tmp_path):
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match="none of the 1 images in .* can be read; the first: .*b.png"):
        sample_images(tmp_path, SMALL, count=5)
