"""What a run keeps from batch to batch: surgery leaves it alone, and a resumed run goes on with it."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyData, difference, run, toy_config

from norton_plugin.mm.runner.augmentation_state import empty_caches_


@DATA_SAMPLERS.register_module(force=True)
class Buckets(BatchSampler):
    """Even and odd images by themselves; as mmdet's AspectRatioBatchSampler it empties a bucket after it was given."""

    def __init__(self, sampler, batch_size, drop_last=False):
        super().__init__(sampler, batch_size, drop_last)
        self.buckets = [[], []]

    def __iter__(self):
        for index in self.sampler:
            bucket = self.buckets[index % 2]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                yield bucket[:]
                del bucket[:]


@HOOKS.register_module(force=True)
class NoteHook(Hook):
    """Notes which images every step sees."""

    priority = "LOWEST"

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append([round(float(image.sum()), 4) for image in data_batch["inputs"]])


def with_loader(work_dir, **changes):
    return {**toy_config(work_dir).train_dataloader, **changes}


def images_of_steps(work_dir, norton):
    loader = with_loader(work_dir, batch_sampler={"type": "Buckets"})
    config = toy_config(work_dir, norton=norton, train_dataloader=loader, custom_hooks=[{"type": "NoteHook"}])
    runner = Runner.from_cfg(config)
    runner.train()
    return next(hook.seen for hook in runner.hooks if isinstance(hook, NoteHook))


@pytest.mark.parametrize("calibrate", [False, True])
def test_images_that_surgery_is_shown_change_no_step_of_the_run(tmp_path, calibrate):
    dense = images_of_steps(tmp_path / "dense", None)
    assert len(dense) == 8 and len({tuple(images) for images in dense}) == 8
    options = {"rank": 2, "calibrate": calibrate, "images": 4}
    assert images_of_steps(tmp_path / "small", options) == dense


@MODELS.register_module(force=True)
class ToyResizes(BaseDataPreprocessor):
    """Batches of one random size for some steps, by what every config of YOLOX has."""

    def __init__(self):
        super().__init__()
        from mmdet.models import BatchSyncRandomResize

        self.batch_augments = nn.ModuleList([BatchSyncRandomResize((4, 64), interval=3, size_divisor=4)])

    def forward(self, data, training=False):
        data = super().forward(data, training)
        if training:
            data["inputs"], _ = self.batch_augments[0](data["inputs"], [])
        return data


def test_sizes_of_batches_are_those_of_the_run_that_was_stopped(tmp_path):
    pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")
    model = {"type": "ToyNet", "data_preprocessor": {"type": "ToyResizes"}}
    whole = run(tmp_path / "whole", epochs=3, model=model)
    size = whole.model.data_preprocessor.batch_augments[0]._input_size
    assert isinstance(size, tuple)
    sizes = {size}
    for epoch in (1, 2):
        path = str(tmp_path / "whole" / f"epoch_{epoch}.pth")
        kept = torch.load(path, weights_only=False)["meta"]["norton_batch_sizes"]["batch_augments.0"]
        assert all(type(side) is int for side in kept)
        sizes.add(tuple(kept))
        again = run(tmp_path / str(epoch), epochs=3, model=model, load_from=path, resume=True)
        assert difference(again, whole) == 0.0
        assert again.model.data_preprocessor.batch_augments[0]._input_size == size
    assert len(sizes) > 1


class Mixed:
    """A transform that mixes each image with one of before."""

    def __init__(self):
        self.results_cache = []

    def __call__(self, image):
        self.results_cache.append(image)
        return (image + self.results_cache[-min(3, len(self.results_cache))]) / 2


class Compose:
    """Transforms, one after the other."""

    def __init__(self):
        self.transforms = [Mixed()]


@DATASETS.register_module(force=True)
class ToyMixed(ToyData):
    """Images of before show in later ones."""

    def __init__(self, size=12):
        super().__init__(size)
        self.pipeline = Compose()

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "inputs": self.pipeline.transforms[0](item["inputs"])}


def test_images_kept_for_mosaics_are_those_of_the_epoch(tmp_path):
    loader = with_loader(tmp_path, dataset={"type": "ToyMixed"})
    whole = run(tmp_path / "whole", epochs=3, train_dataloader=loader)
    path = str(tmp_path / "whole" / "epoch_2.pth")
    again = run(tmp_path / "again", epochs=3, train_dataloader=loader, load_from=path, resume=True)
    assert difference(again, whole) == 0.0


def test_caches_are_found_wherever_transforms_are_held():
    inner, outer = ToyMixed(), ToyMixed()
    outer.dataset, outer.datasets = inner, [inner, outer]  # a ring ends
    for data in (inner, outer):
        data.pipeline.transforms[0].results_cache = [torch.zeros(1)]
    empty_caches_(outer)
    assert [data.pipeline.transforms[0].results_cache for data in (inner, outer)] == [[], []]
