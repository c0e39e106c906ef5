"""tools/train.py and tools/test.py: a folder of images, a config, a checkpoint."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from norton_plugin.errors import RecipeError


@pytest.fixture
def images(tmp_path):
    """Two classes that differ in brightness, 12 images of 32x32 each, the same for training and validation."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, level in (("dark", 60), ("light", 190)):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(12):
                pixels = generator.normal(level, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def config(images, repository):
    path = images / "tiny.py"
    path.write_text(
        f"""_base_ = {str(repository / "configs" / "_base_" / "timm_classification.py")!r}
model = dict(model=dict(spec="timm:test_resnet", num_classes=2, input_size=32))
small = dict(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False,
                        dataset=dict(root={str(images / "train")!r}, preprocessing=small))
val_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False,
                      dataset=dict(root={str(images / "val")!r}, preprocessing=small))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2)
randomness = dict(seed=0)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, convert_to_iter_based=True)]
"""
    )
    return path


def run(repository, script, *arguments):
    return subprocess.run(
        [sys.executable, str(repository / "tools" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=arguments[0].parent,
        timeout=300,
    )


@pytest.mark.slow
def test_train_then_test(config, images, repository):
    work = images / "work"
    done = run(repository, "train.py", config, "--work-dir", work, "--cfg-options", "train_cfg.max_epochs=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (work / "epoch_1.pth").exists() and not (work / "epoch_2.pth").exists()
    resumed = run(repository, "train.py", config, "--work-dir", work, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "resumed epoch: 1" in resumed.stdout + resumed.stderr and (work / "epoch_2.pth").exists()
    tested = run(repository, "test.py", config, work / "epoch_2.pth", "--work-dir", images / "test")
    assert tested.returncode == 0, tested.stderr[-2000:]
    [result] = [json.loads(p.read_text()) for p in (images / "test").glob("*/*.json")]
    logged = [json.loads(line) for p in work.glob("*/vis_data/scalars.json") for line in p.read_text().splitlines()]
    [validated] = [entry["accuracy/top1"] for entry in logged if "accuracy/top1" in entry and entry["step"] == 2]
    assert result["accuracy/top1"] == validated


def test_bad_arguments_are_named(images):
    launch = pytest.importorskip("norton_plugin.mm.runner.launch")
    with pytest.raises(RecipeError, match=r"config '.*absent.py' cannot be read"):
        launch.train([str(images / "absent.py")])
    broken = images / "broken.py"
    broken.write_text("model = dict(")
    with pytest.raises(RecipeError, match=r"broken.py' cannot be read"):
        launch.evaluate([str(broken), "x.pth"])
