"""Blocks whose filters share components, in runs of mmengine (docs/traps.md)."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyData, difference, toy_config

from norton_plugin.blocks import ConvBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.mm import NortonHook
from norton_plugin.mm.patches import guard
from norton_plugin.mm.runner.quiet import preserved_process

ADAMW = {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 5e-3, "weight_decay": 1e-2}}
LAYER = {"level": "layer", "share": 0.6, "linear": True, "keep": 0.5, "factor_decay": "auto"}
# Flat, in sections, and per layer: what a config may say.
CLUSTER = {
    "decomposition": {
        "level": "cluster",
        "clusters": 3,
        "rank": 2,
        "layers": {"shared": {"level": "layer"}, "stage.conv*2": {"rank": 1}},
    },
    "factor_decay": 0.5,
}
FILTER = {"rank": 2, "keep": 0.5}
SPATIAL = {"level": "spatial", "share": 0.6, "keep": 0.5, "factor_decay": "auto"}
NORTON = {"layer": LAYER, "cluster": CLUSTER, "filter": FILTER, "spatial": SPATIAL}


def train(work_dir, level, *, update_buffers=True, epochs=3, **changes):
    """A run by a config that was written to a file and read again, as a user's is."""
    average = {"type": "EMAHook", "momentum": 0.1, "update_buffers": update_buffers}
    changes = {"optim_wrapper": ADAMW, "custom_hooks": [average], **changes}
    config = toy_config(work_dir, norton=NORTON[level], epochs=epochs, **changes)
    work_dir.mkdir(exist_ok=True)
    config.dump(work_dir / "config.py")
    runner = Runner.from_cfg(Config.fromfile(work_dir / "config.py"))
    runner.train()
    return runner


def average_of(runner):
    return next(each for each in runner.hooks if hasattr(each, "ema_model")).ema_model


def hook_of(runner):
    return next(each for each in runner.hooks if isinstance(each, NortonHook))


def logits(model):
    with torch.no_grad():
        return float(copy.deepcopy(model).eval()(ToyData().images).double().sum())


@pytest.fixture(
    scope="module", params=[("layer", True), ("cluster", True), ("cluster", False), ("spatial", True)], ids=str
)
def whole(request, tmp_path_factory):
    """Three epochs at a level, with the buffers averaged or copied: level, setting, runner, folder."""
    level, update_buffers = request.param
    folder = tmp_path_factory.mktemp("whole")
    with preserved_process():
        return level, update_buffers, train(folder, level, update_buffers=update_buffers), folder


def test_the_levels_that_the_config_asks_for(whole):
    level, _, runner, _ = whole
    blocks = {name: m for name, m in runner.model.named_modules() if isinstance(m, ConvBlock | CPDLinear)}
    assert list(blocks) == ["stage.conv1", "stage.conv2", "shared", *(["fc"] if level == "layer" else [])]
    assert runner.model.shared is runner.model.alias and runner.model.shared.clusters == 1
    if level == "cluster":
        slots = [block.slot for block in (blocks["stage.conv1"], blocks["stage.conv2"])]
        assert all(block.clusters == 3 for block in (blocks["stage.conv1"], blocks["stage.conv2"]))
        assert any(not torch.equal(slot, slot.sort().values) for slot in slots)  # neighbours are not together
    elif level == "spatial":
        assert {type(block) for block in blocks.values()} == {SpatialSVDBlock}
        assert [block.out_channels for block in blocks.values()] == [8, 8, 8]
    else:
        assert blocks["stage.conv1"].clusters == 1 and blocks["stage.conv1"].out_channels == 8


def test_every_factor_trains_and_is_averaged(whole):
    """T1, T5: new parameters take the slot of the weight, however many they are; places of filters are no average."""
    runner = whole[2]
    groups = runner.optim_wrapper.optimizer.param_groups
    held = [p for group in groups for p in group["params"] if p.requires_grad]  # the frozen stem is there as well
    trained = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
    assert len(held) == len(trained) and {id(p) for p in held} == {id(p) for p in trained.values()}
    assert {id(p) for p in runner.optim_wrapper.optimizer.state} == {id(p) for p in held}
    fresh = CheckpointLoader.load_checkpoint(str(whole[3] / "epoch_1.pth"), "cpu")["ema_state_dict"]
    now, averaged = runner.model.state_dict(), average_of(runner).module.state_dict()
    factors = [name for name in trained if name.rpartition(".")[2] in ("head", "vertical", "horizontal", "mix")]
    assert any(name.endswith(".horizontal" if whole[0] == "spatial" else ".mix") for name in factors)
    for name in factors:
        assert not torch.equal(now[name], fresh[f"module.{name}"] if f"module.{name}" in fresh else fresh[name])
        assert not torch.equal(now[name], averaged[name]), name
    for name, value in now.items():
        if name.endswith(".slot"):
            assert value.dtype == torch.int64 and torch.equal(value, averaged[name])


def test_factors_decay_by_their_number(whole):
    level, _, runner, _ = whole
    decay = {id(p): g["weight_decay"] for g in runner.optim_wrapper.optimizer.param_groups for p in g["params"]}
    model, quarter, half = runner.model, pytest.approx(2.5e-3), pytest.approx(5e-3)
    names = ("vertical", "horizontal") if level == "spatial" else ("head", "vertical", "horizontal", "mix")
    found = [decay[id(getattr(model.shared, name))] for name in names]
    assert found == [quarter if level == "layer" else half] * len(names)
    assert decay[id(model.shared.bias)] == 1e-2
    fc = [model.fc.head, model.fc.mix] if level == "layer" else [model.fc.weight]
    assert [decay[id(p)] for p in fc] == ([half, half] if level == "layer" else [1e-2])


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, epoch):
    level, update_buffers, first, folder = whole
    path = str(folder / f"epoch_{epoch}.pth")
    again = train(tmp_path / "b", level, update_buffers=update_buffers, load_from=path, resume=True)
    assert difference(again, first) == 0.0
    assert difference(average_of(again).state_dict(), average_of(first).state_dict()) == 0.0
    for mine, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        a, b = again.optim_wrapper.optimizer.state.get(mine), first.optim_wrapper.optimizer.state.get(theirs)
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a["exp_avg"], b["exp_avg"]) and torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]))


def test_a_checkpoint_is_tested_with_the_hook_and_by_the_exported_config(whole, tmp_path):
    level, _, runner, folder = whole
    expected = pytest.approx(logits(average_of(runner).module), rel=1e-5)
    path = str(folder / "epoch_3.pth")
    tested = Runner.from_cfg(toy_config(tmp_path / "a", norton=NORTON[level], load_from=path, optim_wrapper=ADAMW))
    assert tested.test()["sum"] == expected
    exported = Config.fromfile(folder / "norton_config.py")
    exported.merge_from_dict({"work_dir": str(tmp_path / "b"), "load_from": path, "experiment_name": "b"})
    assert Runner.from_cfg(exported).test()["sum"] == expected


def test_a_dense_config_without_the_hook_is_refused(whole, tmp_path):
    """T6."""
    path = str(whole[3] / "epoch_3.pth")
    with pytest.raises(ArtifactError, match=r"another one: .*stage.conv1 is no (CPD|SpatialSVD)Block of rank"):
        Runner.from_cfg(toy_config(tmp_path, custom_hooks=[], load_from=path)).test()


def test_a_linear_layer_that_stayed_dense_is_noticed(whole):
    if whole[0] != "layer":
        pytest.skip("has no decomposed Linear layer")
    model, structure = copy.deepcopy(whole[2].model), hook_of(whole[2]).structure
    assert guard.mismatch(model, structure) is None
    model.fc = nn.Linear(16, 3)
    assert guard.mismatch(model, structure) == "fc is no CPDLinear of 1 components"
    model.fc = CPDLinear(16, 3, 2)
    assert guard.mismatch(model, structure) == "fc has components 2, not 1"


@pytest.mark.parametrize("damage", ["absent", "twice"])
def test_places_of_filters_that_are_damaged_are_refused(whole, tmp_path, damage):
    """T6: mmengine would warn, and evaluate filters of other clusters."""
    if whole[0] != "cluster":
        pytest.skip("one cluster has no places")
    checkpoint = CheckpointLoader.load_checkpoint(str(whole[3] / "epoch_3.pth"), "cpu")
    slot = checkpoint["state_dict"].pop("stage.conv1.slot")
    if damage == "twice":
        checkpoint["state_dict"]["stage.conv1.slot"] = slot.clone().fill_(int(slot[0]))
    torch.save(checkpoint, tmp_path / "damaged.pth")
    changes = {"load_from": str(tmp_path / "damaged.pth"), "custom_hooks": []}
    with pytest.raises(ArtifactError, match=r"do not belong to its structure: .*stage.conv1.slot"):
        Runner.from_cfg(toy_config(tmp_path, norton=NORTON["cluster"], **changes)).test()


def test_checkpoints_of_before_the_levels_are_resumed(tmp_path):
    """Their recipe does not name the new settings, which have their defaults."""
    first = train(tmp_path / "a", "filter", epochs=2)
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / "a" / "epoch_1.pth"), "cpu")
    recipe = checkpoint["meta"]["norton"]["recipe"]["decomposition"]
    for name in ("level", "components", "share", "clusters", "layers", "linear"):
        del recipe[name]
    torch.save(checkpoint, tmp_path / "old.pth")
    again = train(tmp_path / "b", "filter", epochs=2, load_from=str(tmp_path / "old.pth"), resume=True)
    assert difference(again, first) == 0.0
    with pytest.raises(RecipeError, match=r"decomposition.level 'filter' there, 'layer' here"):
        train(tmp_path / "c", "layer", load_from=str(tmp_path / "old.pth"), resume=True)


def test_activation_checkpointing(tmp_path):
    """T16."""
    plain = train(tmp_path / "a", "cluster", epochs=1)
    checked = train(tmp_path / "b", "cluster", epochs=1, activation_checkpointing=["shared"])
    assert "forward" in vars(checked.model.shared)
    assert difference(plain, checked) == 0.0


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_components_stay_balanced_until_training(tmp_path, optimizer):
    """For AdamW all vectors of a component have equal root mean squares, for SGD equal norms; nothing undoes that."""
    still = {"type": "OptimWrapper", "optimizer": {"type": optimizer, "lr": 0.0, "weight_decay": 0.0}}
    for level in ("cluster", "layer"):
        norton = {**NORTON[level], "keep": 1.0, "distill": None}
        config = toy_config(tmp_path / level, norton=norton, epochs=1, optim_wrapper=still)
        runner = Runner.from_cfg(config)
        runner.train()
        assert hook_of(runner).report.calibration_images == 16
        for block in (runner.model.stage["conv1"], runner.model.stage["conv2"], runner.model.shared):
            factors = block.factors
            columns = torch.zeros(block.clusters, block.rank).index_add(0, block.cluster, factors.mix.detach() ** 2)
            sizes = [each.detach().norm(dim=2) for each in factors[:3]] + [columns.sqrt()]
            if optimizer == "AdamW":
                entries = [each.shape[2] for each in factors[:3]]
                filters = block.cluster.bincount(minlength=block.clusters).unsqueeze(1)
                sizes = [size / count**0.5 for size, count in zip(sizes, [*entries, filters], strict=True)]
            for size in sizes[1:]:
                torch.testing.assert_close(size, sizes[0], rtol=1e-4, atol=1e-6)


SGD = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}}


@pytest.mark.parametrize(
    ("level", "wrapper", "warned"),
    [
        ("layer", SGD, "of 4 layers"),
        ("cluster", SGD, "of 3 layers"),
        ("filter", SGD, ""),
        ("layer", ADAMW, ""),
        ("spatial", SGD, ""),
    ],
    ids=["layer", "cluster", "filter", "layer with AdamW", "spatial"],
)
def test_sgd_on_shared_factors_is_warned_of_once(tmp_path, level, wrapper, warned):
    """Products of four factors are badly conditioned for one rate."""
    train(tmp_path / "a", level, epochs=1, optim_wrapper=wrapper)
    told = [line for path in (tmp_path / "a").rglob("*.log") for line in path.read_text().splitlines()]
    told = [line for line in told if "SGD will train" in line]
    assert len(told) == (1 if warned else 0)
    if warned:
        assert warned in told[0] and "stage.conv1 ..." in told[0] and "no single rate" in told[0]
        assert "%" not in told[0]  # no figure without a run to show for it
        betas = "betas=(0.5, 0.999)"
        assert f"optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.005, {betas}, weight_decay=0.001))" in told[0]


def test_the_warning_comes_with_a_checkpoint_too(tmp_path):
    train(tmp_path / "a", "layer", epochs=1, optim_wrapper=SGD)
    path = str(tmp_path / "a" / "epoch_1.pth")
    train(tmp_path / "b", "layer", epochs=2, optim_wrapper=SGD, load_from=path, resume=True)
    told = "".join(path.read_text() for path in (tmp_path / "b").rglob("*.log"))
    assert told.count("SGD will train") == 1
