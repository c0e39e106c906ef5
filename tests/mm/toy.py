"""A small network and data for tests of NortonHook, also run as a script by torchrun."""

import json
import os
import sys

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

NORTON = {"rank": 2, "keep": 0.5}


@MODELS.register_module(force=True)
class ToyNet(BaseModel):
    """A frozen stem, two convolutions with BatchNorm, a shared convolution and a linear layer."""

    def __init__(self, norm="BN", norm_eval=False, freeze_stem=True, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        norms = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stage = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(8, 16, 3, padding=1, bias=False),
                "norm1": norms[norm](16),
                "conv2": nn.Conv2d(16, 16, 3, stride=2, padding=1),
                "norm2": norms[norm](16),
            }
        )
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.alias = self.shared
        self.fc = nn.Linear(16, 3)
        self.norm_eval = norm_eval
        self.freeze_stem = freeze_stem
        self._freeze()

    def _freeze(self):
        if self.freeze_stem:
            self.stem.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, inputs, data_samples=None, mode="tensor"):
        inputs = inputs if isinstance(inputs, torch.Tensor) else torch.stack(list(inputs))
        x = F.relu(self.stem(inputs))
        x = F.relu(self.stage["norm1"](self.stage["conv1"](x)))
        x = F.relu(self.stage["norm2"](self.stage["conv2"](x)))
        x = F.relu(self.alias(F.relu(self.shared(x))))
        logits = self.fc(x.mean((2, 3)))
        if mode == "loss":
            return {"loss": F.cross_entropy(logits, data_samples)}
        return list(logits) if mode == "predict" else logits


@DATASETS.register_module(force=True)
class ToyData(Dataset):
    """Sixteen random images with labels."""

    metainfo = {"classes": ("a", "b", "c")}

    def __init__(self, size=12):
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(16, 3, size, size, generator=generator)

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"inputs": self.images[index], "data_samples": index % 3}


@DATASETS.register_module(force=True)
class ToyAugmented(ToyData):
    """Every image twice, as test-time augmentation gives it."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {key: [value, value] for key, value in item.items()}


@MODELS.register_module(force=True)
class ToyTTA(BaseTTAModel):
    """The mean of the logits of all augmented images."""

    def merge_preds(self, data_samples_list):
        return [torch.stack(list(samples)).mean(0) for samples in data_samples_list]


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """Sum of all logits: differs as soon as one weight does."""

    def process(self, data_batch, data_samples):
        self.results += [float(each.double().sum()) for each in data_samples]

    def compute_metrics(self, results):
        return {"sum": sum(results)}


@HOOKS.register_module(force=True)
class RankHook(Hook):
    """Write what each process has in the end."""

    def after_run(self, runner):
        torch.save(unwrapped(runner.model).state_dict(), os.path.join(runner.work_dir, f"rank{runner.rank}.pth"))


def unwrapped(model):
    return getattr(model, "module", model)


def toy_config(work_dir, *, norton=None, epochs=2, **changes):
    """The config of a run: momentum, warm-up, multipliers per layer, a moving average."""
    loader = {
        "batch_size": 4,
        "num_workers": 0,
        "collate_fn": {"type": "default_collate"},
        "dataset": {"type": "ToyData"},
    }
    test = {**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}}
    config = {
        "model": {"type": "ToyNet"},
        "work_dir": str(work_dir),
        "train_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": True}},
        "train_cfg": {"by_epoch": True, "max_epochs": epochs, "val_interval": 1},
        "val_dataloader": test,
        "val_cfg": {},
        "val_evaluator": {"type": "ToyMetric"},
        "test_dataloader": test,
        "test_cfg": {},
        "test_evaluator": {"type": "ToyMetric"},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
            "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "custom_keys": {"shared": {"lr_mult": 0.5}}},
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 6},
            {"type": "MultiStepLR", "by_epoch": True, "milestones": [3]},
        ],
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        "custom_hooks": [{"type": "EMAHook", "momentum": 0.1, "update_buffers": True}],
        "randomness": {"seed": 0},
        "log_level": "WARNING",
        "default_scope": "mmengine",
        "experiment_name": f"toy_{id(work_dir)}_{os.urandom(4).hex()}",
    }
    if norton is not None:
        config["default_hooks"]["norton"] = {"type": "norton_plugin.NortonHook", **norton}
    config.update(changes)
    return Config(config)


def run(work_dir, *, norton=None, **changes):
    """Trains with NortonHook at rank 2 and half of the channels, and further options of it; the runner."""
    runner = Runner.from_cfg(toy_config(work_dir, norton={**NORTON, **(norton or {})}, **changes))
    runner.train()
    return runner


def difference(first, second):
    """Largest difference of two state dicts, or of the models of two runners, all of whose values are finite."""
    first, second = (each.model.state_dict() if isinstance(each, Runner) else each for each in (first, second))
    assert list(first) == list(second)
    assert all(bool(value.isfinite().all()) for value in first.values())
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def main(work_dir, options):
    """Two epochs on two processes over gloo; each rank writes what its model became.

    Further options of the hook come as JSON.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    os.environ.setdefault("LOCAL_RANK", "0")
    config = toy_config(
        work_dir,
        norton={**NORTON, **json.loads(options)},
        launcher="pytorch",
        model_wrapper_cfg={"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False},
    )
    runner = Runner.from_cfg(config)
    start = {name: value.clone() for name, value in runner.model.module.state_dict().items()}
    runner.train()
    model = runner.model.module
    optimized = [p for g in runner.optim_wrapper.optimizer.param_groups for p in g["params"]]
    torch.save(
        {
            "state": model.state_dict(),
            "ema": next(h for h in runner.hooks if hasattr(h, "ema_model")).ema_model.state_dict(),
            "start": start,
            "same": {id(p) for p in optimized} == {id(p) for p in model.parameters() if p.requires_grad},
            "reduced": {id(p) for p in runner.model.parameters()} == {id(p) for p in model.parameters()},
        },
        os.path.join(work_dir, f"rank{runner.rank}.pth"),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
