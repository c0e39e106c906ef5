"""Kinds of runs that mmengine offers, with a model that is compressed in them (docs/traps.md)."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODEL_WRAPPERS
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner, loops

sys.path.insert(0, str(Path(__file__).parent))
from toy import NORTON, ToyData, difference, run, toy_config

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import RecipeError
from norton_plugin.mm.runner.step_seed import SeededBatches


def test_mmengines_own_mixed_precision(tmp_path, monkeypatch):
    """Its constructor asks for an accelerator, and nothing else in it needs one."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.add(output.dtype) if isinstance(module, CPDBlock) else None
    )
    wrapper = {
        "type": "AmpOptimWrapper",
        "dtype": "bfloat16",
        "accumulative_counts": 2,
        "clip_grad": {"max_norm": 1.0},
        "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
    }
    try:
        whole = run(tmp_path / "whole", epochs=2, optim_wrapper=wrapper, norton={**NORTON, "checkpoint": True})
    finally:
        handle.remove()
    assert isinstance(whole.optim_wrapper, AmpOptimWrapper) and torch.bfloat16 in seen
    assert all(p.dtype == torch.float32 for p in whole.model.parameters())
    fresh = CheckpointLoader.load_checkpoint(str(tmp_path / "whole" / "norton_surgery.pth"), "cpu")["state_dict"]
    now = whole.model.state_dict()
    trained = [name for name, parameter in whole.model.named_parameters() if parameter.requires_grad]
    assert any(name.endswith(".head") for name in trained)
    assert [name for name in trained if torch.equal(now[name], fresh[name])] == []
    again = run(
        tmp_path / "b", epochs=2, optim_wrapper=wrapper, load_from=str(tmp_path / "whole/epoch_1.pth"), resume=True
    )
    assert difference(whole.model.state_dict(), again.model.state_dict()) == 0.0


@DATASETS.register_module(force=True)
class ToyDraws(ToyData):
    """Augmentation that draws from every generator a data set may use."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return {**item, "inputs": item["inputs"] * (0.5 + noise)}


@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_counted_in_iterations_resumes_exactly(tmp_path, monkeypatch, sampler, workers):
    """Its loop draws batches before any hook hears of the step, from one iterator that is made before surgery."""
    monkeypatch.setattr(loops.time, "sleep", lambda seconds: None)  # two seconds at the end of the data
    loader = {
        "batch_size": 4,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "collate_fn": {"type": "default_collate"},
        "dataset": {"type": "ToyDraws"},
        "sampler": {"type": sampler, "shuffle": True},
    }

    def go(folder, **changes):
        config = toy_config(folder, norton=NORTON, train_dataloader=loader, param_scheduler=None, **changes)
        config.train_cfg = {"by_epoch": False, "max_iters": 7, "val_interval": 7}
        config.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": 3, "by_epoch": False}
        runner = Runner.from_cfg(config)
        runner.train()
        return runner.model.state_dict()

    whole = go(tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "norton_report.json").read_text())
    assert report["calibration_images"] == 16
    for step in (3, 6):
        path = str(tmp_path / "whole" / f"iter_{step}.pth")
        assert difference(whole, go(tmp_path / str(step), load_from=path, resume=True)) == 0.0


@DATASETS.register_module(force=True)
class ToyCounted(ToyData):
    """Keeps the numbers of the images that were asked for."""

    asked: ClassVar[list[int]] = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


def test_calibration_takes_no_batch_from_a_run_counted_in_iterations(tmp_path):
    """Training sees what it would have seen without surgery."""
    seen = {}
    for name, norton in (("compressed", NORTON), ("dense", None)):
        config = toy_config(tmp_path / name, norton=norton, param_scheduler=None)
        config.train_dataloader.update(
            dataset={"type": "ToyCounted"}, sampler={"type": "InfiniteSampler", "shuffle": True}
        )
        config.train_cfg = {"by_epoch": False, "max_iters": 5, "val_interval": 9}
        config.default_hooks.checkpoint.by_epoch = False
        ToyCounted.asked.clear()
        Runner.from_cfg(config).train()
        seen[name] = ToyCounted.asked[-20:]
    assert len(set(seen["dense"])) > 4 and seen["compressed"] == seen["dense"]


def test_a_batch_is_drawn_under_its_own_number():
    def drawn(skipped):
        batches = SeededBatches((random.random() + float(torch.rand(())) for _ in range(9)), seed=3)
        values = []
        for number in range(9):
            if number >= skipped:
                random.seed(number)  # what a step does to the generators
            values.append(next(batches))
        return values

    assert drawn(0) == drawn(4) and len(set(drawn(0))) == 9


def test_the_exported_config_trains(tmp_path):
    """Without the hook: mmengine initialises all weights first (T11), then loads the checkpoint."""
    run(tmp_path / "a", epochs=1)
    config = Config.fromfile(tmp_path / "a" / "norton_config.py")
    path = str(tmp_path / "a" / "epoch_1.pth")
    config.merge_from_dict({"work_dir": str(tmp_path / "b"), "load_from": path, "experiment_name": "b"})
    config.optim_wrapper.optimizer.lr = 0.0
    runner = Runner.from_cfg(config)
    runner.train()
    assert isinstance(runner.model.shared, CPDBlock) and isinstance(runner.model.stage["conv1"], CPDBlock)
    written = CheckpointLoader.load_checkpoint(str(path), "cpu")["state_dict"]
    for name, parameter in runner.model.named_parameters():
        assert torch.equal(parameter, written[name]), name


def test_published_checkpoints_keep_the_structure(tmp_path):
    config = toy_config(tmp_path, norton=NORTON, epochs=1)
    config.default_hooks.checkpoint.published_keys = ["meta", "state_dict"]
    runner = Runner.from_cfg(config)
    runner.train()
    (path,) = tmp_path.glob("epoch_1-*.pth")
    assert set(torch.load(path, weights_only=True)) == {"meta", "state_dict"}
    sums = []
    for checkpoint in (path, tmp_path / "epoch_1.pth"):
        changes = {"load_from": str(checkpoint), "custom_hooks": []}
        sums.append(Runner.from_cfg(toy_config(tmp_path / "t", norton=NORTON, **changes)).test()["sum"])
    assert sums[0] == sums[1] != 0


def test_a_flexible_runner_is_refused(tmp_path):
    """T24: it prepares the model by a strategy before any hook can change it."""
    config = toy_config(tmp_path, norton=NORTON, epochs=1, env_cfg={"dist_cfg": {"backend": "gloo"}})
    runner = FlexibleRunner.from_cfg(config)
    with pytest.raises(RecipeError, match="not with FlexibleRunner"):
        runner.train()


@MODEL_WRAPPERS.register_module(force=True)
class ToyWrapper(nn.Module):
    """Any wrapper that is not known to leave the parameters as they are."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_wrappers_that_cannot_be_made_anew_are_refused(tmp_path):
    """T24."""
    runner = Runner.from_cfg(toy_config(tmp_path, norton=NORTON))
    runner.model = ToyWrapper(runner.model)
    with pytest.raises(RecipeError, match="wrapped in ToyWrapper, which cannot be renewed.*norton compress"):
        runner.call_hook("before_run")


def test_kinds_of_mean_teachers_are_refused(tmp_path):
    """T23: a class derived from mmdet's hook pairs parameters as well."""
    teacher = type("MeanTeacherHook", (Hook,), {})
    runner = Runner.from_cfg(toy_config(tmp_path, norton=NORTON))
    runner.register_hook(type("OwnHook", (teacher,), {})())
    with pytest.raises(RecipeError, match="MeanTeacherHook"):
        runner.train()


@pytest.mark.slow
def test_a_failure_on_the_first_rank_reaches_the_others(tmp_path):
    """T21: the others wait for its plan, and would wait until the time-out of their backend."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = [sys.executable, str(Path(__file__).parent / "toy.py"), str(tmp_path), json.dumps({"scope": ["nothing"]})]
    started = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        own |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(script, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True))
    try:
        messages = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [1, 1]
    # The plan is made on the first rank alone; the second reports the very same error.
    reports = [[line.partition("RecipeError: ")[2] for line in text.splitlines()] for text in messages]
    reports = [[line for line in lines if line] for lines in reports]
    assert reports[0] and reports[0] == reports[1] and "nothing" in reports[0][0]
