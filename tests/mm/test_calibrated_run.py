"""NortonHook with ``calibrate`` and budgets: layers fitted to training images inside a run."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from norton_plugin.errors import RecipeError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader, Runner

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyData, ToyNet, difference, toy_config

from norton_plugin import compress
from norton_plugin.calibration.sequential import SequentialPass
from norton_plugin.mm import NortonHook
from norton_plugin.mm.run import after_surgery, compression, fresh, shown
from norton_plugin.mm.runner.quiet import preserved_process

pytestmark = pytest.mark.mm
FITTED = {"calibrate": True, "budget": {"macs": 0.7}, "restarts": 1, "sweeps": 30}


def trained(folder, *, norton=FITTED, **changes):
    """A run from a checkpoint of the dense model, without warnings of random weights."""
    path = folder.parent / "dense.pth"
    if not path.exists():
        torch.manual_seed(5)
        torch.save({"state_dict": ToyNet().state_dict(), "meta": {}}, path)
    runner = Runner.from_cfg(toy_config(folder, norton=norton, **{"load_from": str(path), **changes}))
    runner.train()
    return runner


def dense(folder):
    model = ToyNet()
    model.load_state_dict(torch.load(folder.parent / "dense.pth", weights_only=True)["state_dict"])
    return model


def log_of(folder):
    (path,) = folder.glob("*/*.log")
    return path.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three epochs of a calibrated run: the runner, its folder, what compress was told and the states around it."""
    folder, seen = tmp_path_factory.mktemp("whole") / "run", {}
    original = compress

    def told(model, example, recipe, **options):
        seen.update(example=example, recipe=recipe, images=options["calibration"])
        return original(model, example, recipe, **options)

    def states():
        return torch.get_rng_state(), np.random.get_state()[1].copy()

    patched = pytest.MonkeyPatch()
    patched.setattr(compression, "compress", told)
    inner = fresh.decide

    def around(*args, **options):
        before = states()
        decision = inner(*args, **options)
        seen["states"] = before, states()
        return decision

    patched.setattr(fresh, "decide", around)
    with preserved_process():
        runner = trained(folder, norton={**FITTED, "checkpoint": True}, epochs=3, log_level="INFO")
    patched.undo()
    return runner, folder, seen


def test_the_weights_are_those_of_compress_on_the_same_batches(whole):
    _, folder, seen = whole
    frozen = {**seen["recipe"].to_dict()["scope"]}
    assert frozen["exclude"] == ["stem"]
    model, report = compress(
        dense(folder),
        seen["example"],
        seen["recipe"],
        calibration=seen["images"],
        forward_fn=lambda net, images: net(images, mode="tensor"),
    )
    surgery = CheckpointLoader.load_checkpoint(str(folder / "norton_surgery.pth"), "cpu")["state_dict"]
    assert difference(model.state_dict(), surgery) == 0.0
    written = json.loads((folder / "norton_report.json").read_text())
    assert written["calibration"]["divergence"] == report.calibration.divergence
    assert written["calibration"]["chosen"].startswith("fitted")
    assert 0.6 < report.macs_after / report.macs_before <= 0.7


def test_the_images_are_training_images_in_batches_enough_to_hold_some_back(whole):
    images = whole[2]["images"]
    known = list(ToyData().images)
    found = [next(i for i, own in enumerate(known) if torch.equal(own, image)) for image in torch.cat(images)]
    assert sorted(found) == list(range(16)) and found != list(range(16))  # in the order of the run
    assert len(images) == 8
    settings = whole[2]["recipe"].calibration
    assert (settings.images, settings.positions, settings.fit) == (16, "auto", True)


def test_the_runs_own_random_numbers_stay(whole):
    before, after = whole[2]["states"]
    assert torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1])


def test_the_log_tells_how_far_it_is_and_what_came_of_it(whole):
    log = log_of(whole[1])
    steps = (
        "surgery begins: level='auto', restarts=1, sweeps=30, macs=0.7, fit=True",
        "reading training images to calibrate on",
        "16 training images of about 12 x 12 are shown to the model",
        "finding sizes for the budget",
        "decomposing the filters",
        "fitting the layers to training images",
        "budget of the decomposed model, MACs 0.7",
        "divergence from the dense model on 2 others: plain ",
        "fitted, target output (it is called 2 times), 1: shared",
    )
    places = [log.index(words) for words in steps]
    assert places == sorted(places)
    assert "no load_from is given" not in log


def test_random_weights_are_warned_of(tmp_path):
    trained(tmp_path / "run", epochs=1, load_from=None, log_level="INFO")
    assert "the model has random weights" in log_of(tmp_path / "run")


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_run_is_exact_and_calibrates_nothing(whole, tmp_path, monkeypatch, epoch):
    first, folder, _ = whole
    monkeypatch.setattr(compression, "compress", None)
    monkeypatch.setattr(shown, "shown_images", None)
    path = str(folder / f"epoch_{epoch}.pth")
    again = trained(tmp_path / "run", epochs=3, load_from=path, resume=True)
    assert difference(again, first) == 0.0


def test_the_checkpoint_is_tested_without_images_and_without_the_hook(whole, tmp_path, monkeypatch):
    from mmengine.config import Config

    monkeypatch.setattr(compression, "compress", None)
    path = str(whole[1] / "epoch_3.pth")
    found = Runner.from_cfg(toy_config(tmp_path, norton=FITTED, load_from=path)).test()["sum"]
    config = Config.fromfile(whole[1] / "norton_config.py")
    config.merge_from_dict({"work_dir": str(tmp_path / "x"), "load_from": path, "experiment_name": "exported"})
    assert Runner.from_cfg(config).test()["sum"] == found != 0


def test_layers_that_are_only_pruned_are_compensated(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(compression, "note_on_forms", lambda *_, **__: "what the blocks run as")
    trained(folder, norton={"keep": 0.5, "calibrate": True}, log_level="INFO")
    assert "NORTON: what the blocks run as" in log_of(folder)
    written = json.loads((folder / "norton_report.json").read_text())
    assert written["decomposition"]["layers"] == []
    assert written["pruning"]["groups"]
    divergence = written["calibration"]["divergence"]
    assert divergence["fitted"] < 0.9 * divergence["plain"]
    assert written["calibration"]["chosen"].startswith("fitted")


def test_another_budget_is_refused(whole, tmp_path):
    path = str(whole[1] / "epoch_1.pth")
    with pytest.raises(RecipeError, match=r"budget.macs 0.7 there, 0.6 here"):
        trained(tmp_path / "run", norton={**FITTED, "budget": {"macs": 0.6}}, load_from=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "calibrate": "yes"}, "calibrate is 'yes'; expected true or false"),
        ({"rank": 2, "calibrate": {"fit": True}}, "settings go into calibration"),
        ({"rank": 2, "calibrate": True, "fit": True}, "are the same setting"),
        ({"rank": 2, "calibrate": True, "calibration": {"fit": False}}, "given both"),
        ({"rank": 2, "calibrat": True}, "did you mean 'calibrate'"),
        ({"budget": {"macs": 2}}, "budget.macs is 2"),
        ({"budget": {"time": 0.5}}, "unknown setting budget.'time'"),
        ({"budget": {"macs": 0.5}, "rank": 2}, "leave one of them out"),
        ({"budget": 0.5}, "expected a table of settings"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError, match=message):
        NortonHook(**options)


def test_options_flat_and_in_sections_are_the_same():
    flat = NortonHook(calibrate=True, macs=0.5, images=64, positions=9).recipe
    calibration = {"fit": True, "images": 64, "positions": 9}
    assert flat == NortonHook(calibration=calibration, budget={"macs": 0.5}).recipe
    assert flat.decomposition.level == "auto"  # as on the command line
    assert NortonHook(budget={"macs": 0.5}, level="filter").recipe.decomposition.level == "filter"
    assert NortonHook(rank=2).recipe.calibration.images == 256


def test_a_budget_that_cannot_be_met_says_the_least(tmp_path):
    with pytest.raises(RecipeError, match=r"the least that can be reached is 0\.\d+"):
        trained(tmp_path / "run", norton={**FITTED, "budget": {"macs": 0.01}})
    assert not list((tmp_path / "run").glob("norton*"))


def test_a_budget_without_calibrate_sees_images_and_statistics_are_reestimated_afterwards(tmp_path):
    runner = trained(tmp_path / "run", norton={**FITTED, "calibrate": False}, epochs=1)
    report = json.loads((tmp_path / "run" / "norton_report.json").read_text())
    assert report["budget"]["measure"] == "outputs" and report["calibration"] is None
    assert report["calibration_images"] == 16
    assert isinstance(next(h for h in runner.hooks if isinstance(h, NortonHook)).report.budget.macs, float)


def test_many_pixels_make_few_images_read_at_more_positions(monkeypatch, tmp_path):
    monkeypatch.setattr(shown, "_PIXELS", 5 * 12 * 12 + 7)
    seen = {}
    monkeypatch.setattr(
        compression,
        "compress",
        lambda *args, **options: seen.update(recipe=args[2], **options) or compress(*args, **options),
    )
    trained(tmp_path / "a", epochs=1)
    assert sum(map(len, seen["calibration"])) == 5 and len(seen["calibration"]) == 5
    assert seen["recipe"].calibration.positions == "auto"
    trained(tmp_path / "b", norton={**FITTED, "images": 7, "positions": 40}, epochs=1)  # named: taken at their word
    assert sum(map(len, seen["calibration"])) == 7 and seen["recipe"].calibration.positions == 40
    monkeypatch.setattr(shown, "_PIXELS", 3)
    trained(tmp_path / "c", epochs=1)
    assert sum(map(len, seen["calibration"])) == 1


def test_a_model_learns_from_the_dense_one_before_it_trains(tmp_path, monkeypatch):
    """Statistics of norms are those that it learned with: a re-estimation afterwards would undo a part of it."""
    monkeypatch.setattr(after_surgery, "reestimate_", None)
    taught = {"rank": 1, "distillation": {"passes": 6, "lr": 0.01}, "checkpoint": True, "restarts": 1}
    runner = trained(tmp_path / "run", norton=taught, epochs=1, log_level="INFO")
    report = json.loads((tmp_path / "run" / "norton_report.json").read_text())
    found = report["distillation"]
    assert found["kept"] == "after" and found["divergence"]["after"] < found["divergence"]["before"]
    assert (found["images"], found["held_back"], report["calibration_images"]) == (14, 2, 16)
    assert "NORTON: learning from the dense model" in log_of(tmp_path / "run")
    surgery = CheckpointLoader.load_checkpoint(str(tmp_path / "run" / "norton_surgery.pth"), "cpu")["state_dict"]
    start = dense(tmp_path / "run").state_dict()
    assert torch.equal(surgery["stem.weight"], start["stem.weight"])  # frozen
    assert not torch.equal(surgery["fc.weight"], start["fc.weight"])
    assert difference(runner.model.state_dict(), surgery) > 0


@DATASETS.register_module(force=True)
class FlatData(ToyData):
    """Vectors in place of images, which the network makes images of."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "inputs": self.images[index].flatten()}


def test_what_is_no_image_is_refused(tmp_path):
    config = toy_config(tmp_path / "run", norton={**FITTED, "input_size": (12, 12)})
    config.train_dataloader.dataset.type = "FlatData"
    with pytest.raises(RecipeError, match=r"gives shape \(4, 432\); use norton compress"):
        Runner.from_cfg(config).train()


def test_a_stopped_calibration_leaves_nothing_behind(tmp_path, monkeypatch):
    """Neither files, nor a model that is half changed."""
    reached, fit = [], SequentialPass._fit

    def stopped(self, pairing, *rest):
        reached.append(pairing.layer.name)
        if len(reached) == 3:
            raise KeyboardInterrupt
        return fit(self, pairing, *rest)

    monkeypatch.setattr(SequentialPass, "_fit", stopped)
    start = {}

    class Look(Hook):
        priority = "VERY_HIGH"

        def before_train(self, runner):
            start.update(model=runner.model, state=copy.deepcopy(runner.model.state_dict()))

    folder = tmp_path / "run"
    config = toy_config(folder, norton={**FITTED, "checkpoint": True, "distill": {"layers": "shared"}})
    runner = Runner.from_cfg(config)
    runner.register_hook(Look())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert len(reached) == 3 and difference(start["model"].state_dict(), start["state"]) == 0.0
    assert not [path.name for path in folder.rglob("*") if path.suffix in (".pth", ".json", ".part")]
    assert not (folder / "last_checkpoint").exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from mmengine.runner import Runner
from toy import toy_config
from norton_plugin.calibration.sequential import SequentialPass
fit, reached = SequentialPass._fit, []
def killed(self, *args):
    reached.append(0)
    if len(reached) == 3 and {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(self, *args)
SequentialPass._fit = killed
Runner.from_cfg(toy_config({folder!r}, norton={norton!r}, epochs=1)).train()
"""


@pytest.mark.slow
def test_kill_9_while_calibrating_and_start_again(tmp_path):
    """The second start in the same folder ends as a run that nothing disturbed."""

    def started(name, *, kill):
        script = KILLED.format(here=str(Path(__file__).parent), folder=str(tmp_path / name), norton=FITTED, kill=kill)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)

    assert started("cut", kill=True).returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "cut").rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".pth", ".part")) or name.startswith("norton")]
    for name in ("cut", "whole"):
        done = started(name, kill=False)
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        CheckpointLoader.load_checkpoint(str(tmp_path / name / "epoch_1.pth"), "cpu")["state_dict"]
        for name in ("cut", "whole")
    )
    assert difference(first, second) == 0.0
