"""NortonHook on mmengine's stock Runner. T1 ... are the traps of docs/traps.md."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import ArtifactError, RecipeError, SurgeryError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner

sys.path.insert(0, str(Path(__file__).parent))
from toy import NORTON, ToyData, ToyNet, difference, run, toy_config

from norton_plugin.mm import NortonHook, export_config
from norton_plugin.mm.run import after_surgery
from norton_plugin.mm.runner.quiet import preserved_process
from norton_plugin.reasons import Reason


def hook_of(runner, kind=NortonHook):
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


def average(runner):
    return next(hook for hook in runner.hooks if hasattr(hook, "ema_model")).ema_model


def optimized(runner):
    return [p for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four epochs in one go: the runner, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with preserved_process():
        runner = run(folder, epochs=4)
    return runner, folder


@pytest.fixture(scope="module")
def logits(whole):
    """Sum of all logits of the moving average, which is what checkpoints hold for testing."""
    model = copy.deepcopy(average(whole[0]).module).eval()
    with torch.no_grad():
        return float(model(ToyData().images).double().sum())


def test_the_model_is_compressed_and_frozen_layers_are_left_dense(whole):
    """T4."""
    model = whole[0].model
    assert isinstance(model.stem, nn.Conv2d) and model.stem.out_channels == 8
    assert isinstance(model.stage["conv1"], CPDBlock) and model.stage["conv1"].rank == 2
    assert model.stage["conv1"].out_channels == 8 and model.stage["norm1"].num_features == 8
    assert model.shared is model.alias and isinstance(model.shared, CPDBlock)  # T15
    assert not any(p.requires_grad for p in model.stem.parameters())  # T3
    assert all(p.requires_grad for p in model.stage["conv1"].parameters())


def test_the_optimizer_holds_the_models_parameters_and_no_other(whole):
    """T1."""
    runner = whole[0]
    names = {p: name for name, p in runner.model.named_parameters()}
    assert [tuple(p.shape) for p in optimized(runner) if p not in names] == []
    assert {names[p] for p in optimized(runner)} == {names[p] for p in names if p.requires_grad}
    assert len(optimized(runner)) == len({id(p) for p in optimized(runner)})
    state = runner.optim_wrapper.optimizer.state
    assert {id(p) for p in state} == {id(p) for p in runner.model.parameters() if p.requires_grad}


def test_slots_keep_their_group_and_its_settings(tmp_path):
    """T1: multipliers per layer stay with the factors of their layer."""
    runner = run(tmp_path, epochs=1, param_scheduler=None)
    by_parameter = {id(p): group for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]}
    model = runner.model
    for name in ("head", "vertical", "horizontal"):
        assert by_parameter[id(getattr(model.shared, name))]["lr"] == pytest.approx(0.025)
        assert by_parameter[id(getattr(model.stage["conv1"], name))]["lr"] == pytest.approx(0.05)
    assert by_parameter[id(model.stage["conv2"].bias)]["lr"] == pytest.approx(0.1)
    assert by_parameter[id(model.stage["norm1"].weight)]["weight_decay"] == 0.0


def test_training_changes_the_factors(tmp_path):
    """T1: the new factors really train, and with them the moving average (T5)."""
    seen = {}

    class Look(Hook):
        priority = "LOWEST"

        def before_train(self, runner):
            seen.update({name: value.clone() for name, value in runner.model.state_dict().items()})

    runner = Runner.from_cfg(toy_config(tmp_path, norton=NORTON, epochs=1))
    runner.register_hook(Look())
    runner.train()
    now, ema = runner.model.state_dict(), average(runner).module.state_dict()
    trained = [name for name, p in runner.model.named_parameters() if p.requires_grad]
    assert any(name.endswith(".head") for name in trained)
    for name in trained:
        assert not torch.equal(now[name], seen[name]), name
        assert ema[name].shape == now[name].shape
        assert not torch.equal(ema[name], seen[name]) and not torch.equal(ema[name], now[name]), name


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, epoch):
    first, folder = whole
    checkpoint = folder / f"epoch_{epoch}.pth"
    runner = run(tmp_path, epochs=4, load_from=str(checkpoint), resume=True)
    assert difference(runner.model.state_dict(), first.model.state_dict()) == 0.0
    assert difference(average(runner).state_dict(), average(first).state_dict()) == 0.0
    assert runner.optim_wrapper.get_lr() == first.optim_wrapper.get_lr()
    for mine, theirs in zip(optimized(runner), optimized(first), strict=True):
        a, b = (r.optim_wrapper.optimizer.state[p] for r, p in ((runner, mine), (first, theirs)))
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_compression_after_some_epochs_resumes_on_both_sides_of_it(tmp_path):
    late = {**NORTON, "at_epoch": 2}
    first = run(tmp_path / "a", epochs=4, norton=late)
    assert isinstance(first.model.shared, CPDBlock)
    for epoch, dense in ((1, True), (2, True), (3, False)):
        path = tmp_path / "a" / f"epoch_{epoch}.pth"
        entry = CheckpointLoader.load_checkpoint(str(path), "cpu")["meta"]["norton"]  # T8
        assert (entry["structure"] is None) == dense
        again = run(tmp_path / str(epoch), epochs=4, norton=late, load_from=str(path), resume=True)
        assert difference(again.model.state_dict(), first.model.state_dict()) == 0.0


def test_the_checkpoint_carries_json_only(whole):
    meta = CheckpointLoader.load_checkpoint(str(whole[1] / "epoch_1.pth"), "cpu")["meta"]["norton"]
    assert json.loads(json.dumps(meta)) == meta
    assert meta["recipe"]["pruning"]["keep"] == 0.5 and len(meta["structure_hash"]) == 64
    report = json.loads((whole[1] / "norton_report.json").read_text())
    assert report["macs_after"] < report["macs_before"]
    skipped = report["decomposition"]["skipped"] + report["pruning"]["skipped"]
    assert skipped and all(entry.keys() == {"name", "code", "reason"} for entry in skipped)
    assert {entry["code"] for entry in skipped} <= {reason.code for reason in Reason}


@pytest.mark.parametrize("how", ["test", "val"])
def test_a_compressed_checkpoint_is_tested_with_the_hook(whole, logits, tmp_path, how):
    """T5: with a moving average in the config, too."""
    path = str(whole[1] / "epoch_4.pth")
    runner = Runner.from_cfg(toy_config(tmp_path, norton=NORTON, load_from=path))
    assert getattr(runner, how)()["sum"] == pytest.approx(logits, rel=1e-5)
    assert isinstance(runner.model.shared, CPDBlock)


def test_a_dense_config_without_the_hook_is_refused(whole, tmp_path):
    """T6: mmengine itself would warn and evaluate random weights."""
    runner = Runner.from_cfg(toy_config(tmp_path, custom_hooks=[], load_from=str(whole[1] / "epoch_4.pth")))
    with pytest.raises(ArtifactError, match=r"another one: .*stage.*norton_config.py"):
        runner.test()


def test_without_the_package_mmengine_only_warns(whole, tmp_path):
    """T6: the reason for the check."""
    from mmengine.runner import checkpoint as module

    checkpoint = CheckpointLoader.load_checkpoint(str(whole[1] / "epoch_4.pth"), "cpu")
    module._load_checkpoint_to_model.__wrapped__(ToyNet(), copy.deepcopy(checkpoint))
    with pytest.raises(ArtifactError):
        module._load_checkpoint_to_model(ToyNet(), checkpoint)


def test_another_recipe_is_refused(whole, tmp_path):
    path = str(whole[1] / "epoch_1.pth")
    with pytest.raises(RecipeError, match=r"decomposition.rank 2 there, 3 here.*again=True"):
        run(tmp_path, norton={"rank": 3}, load_from=path)
    with pytest.raises(RecipeError, match=r"decomposition.rank 2 there, 3 here"):
        run(tmp_path / "resumed", epochs=4, norton={"rank": 3, "again": True}, load_from=path, resume=True)


def test_a_checkpoint_is_tested_whatever_the_recipe_says_and_trained_on_with_other_images(whole, logits, tmp_path):
    """T6: its structure is its own; only a run that trains has to agree, in what decides the structure."""
    path = str(whole[1] / "epoch_4.pth")
    for options in ({**NORTON, "images": 8}, {"rank": 3, "keep": 0.7}):
        runner = Runner.from_cfg(toy_config(tmp_path, norton=options, load_from=path))
        assert runner.test()["sum"] == pytest.approx(logits, rel=1e-5)
    other = {"images": 8, "time_limit": 90.0, "restarts": 1}
    path = str(whole[1] / "epoch_1.pth")
    runner = run(tmp_path / "on", epochs=4, norton=other, load_from=path, resume=True)
    assert difference(runner.model.state_dict(), whole[0].model.state_dict()) == 0.0


def test_a_compressed_checkpoint_is_compressed_once_more(whole, tmp_path):
    """The structure of the second step leads from the dense model to what it is then; it resumes, and is exported."""
    path, again = str(whole[1] / "epoch_4.pth"), {"rank": None, "keep": 0.5, "round_to": 2, "again": True}
    runner = run(tmp_path / "a", epochs=2, norton=again, load_from=path)
    assert whole[0].model.shared.out_channels == 8 and runner.model.shared.out_channels == 4
    assert isinstance(runner.model.shared, CPDBlock) and runner.model.shared.rank == 2
    meta = CheckpointLoader.load_checkpoint(str(tmp_path / "a" / "epoch_1.pth"), "cpu")["meta"]["norton"]
    assert [each["decomposition"]["rank"] for each in meta["earlier"]] == [2]
    resumed = run(tmp_path / "b", norton=again, load_from=str(tmp_path / "a" / "epoch_1.pth"), resume=True)
    assert difference(resumed.model.state_dict(), runner.model.state_dict()) == 0.0
    net = MODELS.build(export_config({"model": {"type": "ToyNet"}}, hook_of(runner).structure).model)
    net.load_state_dict(runner.model.state_dict())
    third = run(tmp_path / "c", epochs=1, norton={**again, "keep": 0.5}, load_from=str(tmp_path / "a" / "epoch_2.pth"))
    assert third.model.shared.out_channels == 2 and len(hook_of(third)._earlier) == 2


def test_a_second_step_has_no_teacher():
    with pytest.raises(RecipeError, match="exclude each other"):
        NortonHook(rank=2, again=True, distill=True)


def test_resuming_from_a_dense_checkpoint_is_refused_and_starting_from_one_is_not(tmp_path):
    dense = Runner.from_cfg(toy_config(tmp_path / "dense", epochs=1))
    dense.train()
    path = str(tmp_path / "dense" / "epoch_1.pth")
    with pytest.raises(ArtifactError, match="load_from"):
        run(tmp_path / "a", load_from=path, resume=True)
    with pytest.raises(ArtifactError, match="not compressed"):
        Runner.from_cfg(toy_config(tmp_path / "b", norton=NORTON, load_from=path)).test()
    runner = run(tmp_path / "c", load_from=path, epochs=1)
    assert torch.equal(runner.model.stem.weight, dense.model.stem.weight)
    assert isinstance(runner.model.shared, CPDBlock)


def test_a_damaged_or_foreign_structure_is_refused(whole, tmp_path):
    checkpoint = CheckpointLoader.load_checkpoint(str(whole[1] / "epoch_1.pth"), "cpu")
    checkpoint["meta"]["norton"]["structure"]["modules"][0]["names"] = ["nothing"]
    torch.save(checkpoint, tmp_path / "damaged.pth")
    config = toy_config(tmp_path, norton=NORTON, load_from=str(tmp_path / "damaged.pth"))
    with pytest.raises(ArtifactError, match="hash"):
        Runner.from_cfg(config).test()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnak": 2}, "did you mean 'rank'"),
        ({"rank": 2, "prunning": {}}, "did you mean 'pruning'"),
        ({"rank": 2, "at_epok": 1}, "did you mean 'at_epoch'"),
        ({"rank": 2, "pruning": {"kep": 0.5}}, "did you mean 'keep'"),
        ({"keep": 0.5, "pruning": {"keep": 0.6}}, "given both"),
        ({}, "asked for nothing"),
        ({"rank": 2, "at_epoch": -1}, "at least 0"),
        ({"rank": 2, "input_size": (3,)}, "input_size"),
        ({"components": 4}, "set level to 'layer', 'cluster' or 'spatial'"),
        ({"level": "layer", "rank": 2, "share": 0.5}, "contradict each other"),
        ({"level": "cluster", "rank": 2}, "say how many clusters"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError, match=message):
        NortonHook(**options)


def test_flat_keys_and_sections_are_the_same():
    flat = NortonHook(rank=3, keep=0.7, scope=["stage"], criterion="vbd", verify=False).recipe
    sections = NortonHook(
        decomposition={"rank": 3},
        pruning={"keep": 0.7, "criterion": "vbd"},
        scope={"include": ["stage"]},
        verify=False,
    ).recipe
    assert flat == sections
    assert flat.scope.include == ("stage",)


def test_levels_flat_and_in_sections_are_the_same():
    layers = {"stage.*": {"level": "cluster", "clusters": 2}, "shared": {"components": 6}}
    settings = {"level": "layer", "share": 0.4, "layers": layers, "linear": True}
    flat = NortonHook(**settings).recipe
    assert flat == NortonHook(decomposition=settings, pruning={"linear": True}).recipe
    assert (flat.decomposition.level, flat.decomposition.share, flat.decomposition.linear) == ("layer", 0.4, True)
    assert flat.decomposition.request("shared").components == 6
    neither = NortonHook(rank=2, linear=False).recipe  # both sections have it
    assert (neither.decomposition.linear, neither.pruning.linear) == (False, False)


def test_scope_that_matches_nothing(tmp_path):
    with pytest.raises(RecipeError, match="backbone"):
        run(tmp_path, norton={"rank": 2, "keep": 1.0, "scope": ["backbone"]})


def test_frozen_layers_on_request_keep_their_flags(tmp_path):
    """T3, T4."""
    runner = run(tmp_path, epochs=1, norton={**NORTON, "frozen": True})
    assert runner.model.stage["conv1"].in_channels == runner.model.stem.out_channels == 8
    assert not any(p.requires_grad for p in runner.model.stem.parameters())
    assert isinstance(runner.model.stem, CPDBlock)


def test_norm_eval_and_sync_bn(tmp_path):
    """T3, T12: statistics stay as surgery left them; mmengine's private BatchNorm is pruned like any."""
    model = {"type": "ToyNet", "norm": "SyncBN", "norm_eval": True}
    runner = run(tmp_path, epochs=1, model=model, norton={**NORTON, "batch_norm": False})
    norm = runner.model.stage["norm1"]
    assert type(norm) is not nn.BatchNorm2d and norm.num_features == 8
    runner.model.train()
    assert not norm.training and torch.equal(norm.running_mean, torch.zeros(8))


def _statistics(runner):
    return {name: value.clone() for name, value in runner.model.state_dict().items() if "running" in name}


class _Watch(Hook):
    """Notes the statistics of all norms at the start of every epoch, and at the end."""

    priority = "LOWEST"

    def __init__(self):
        self.seen = []

    def before_train_epoch(self, runner):
        self.seen.append(_statistics(runner))

    def after_train(self, runner):
        self.seen.append(_statistics(runner))


def _watched(folder, norton, **changes):
    watch = _Watch()
    runner = Runner.from_cfg(toy_config(folder, norton=norton, **changes))
    runner.register_hook(watch)
    runner.train()
    return runner, watch.seen


def _moved(before, after):
    return {name: not torch.equal(before[name], after[name]) for name in after}


def test_statistics_are_kept_while_weights_of_norms_learn(tmp_path):
    runner, (fresh, between, last) = _watched(tmp_path, {**NORTON, "norm_eval": True}, epochs=2)
    assert not any(_moved(fresh, between).values()) and not any(_moved(fresh, last).values())
    surgery = {**NORTON, "norm_eval": True, "checkpoint": True}
    runner, _ = _watched(tmp_path / "again", surgery, epochs=2)
    before = torch.load(tmp_path / "again" / "norton_surgery.pth", weights_only=False)["state_dict"]
    assert not torch.equal(before["stage.norm1.weight"], runner.model.state_dict()["stage.norm1.weight"])


@pytest.fixture
def trained(tmp_path):
    """Weights to start from: random ones are told of, and leave their statistics to the training."""
    torch.save({"state_dict": ToyNet().state_dict(), "meta": {}}, tmp_path / "dense.pth")
    return {"load_from": str(tmp_path / "dense.pth"), "log_level": "INFO"}


def _with_batches(folder, size):
    return {"train_dataloader": {**toy_config(folder).train_dataloader, "batch_size": size}}


def _said(folder):
    return " ".join(path.read_text() for path in folder.glob("*/*.log"))


@pytest.mark.parametrize(
    ("norton", "batch", "kept", "why"),
    [
        ({}, 4, True, "a step shows a norm 4 images; norm_eval=False changes this"),
        ({"norm_eval": False}, 4, False, "norm_eval=False"),
        ({"batch_norm": False}, 4, False, "they are not statistics of training images"),  # but of the dense model
        ({"batch_norm": False, "norm_eval": True}, 4, True, "norm_eval=True"),
        ({}, 32, False, "a step shows a norm 32 images; norm_eval=True changes this"),
        ({"norm_eval": True}, 32, True, "norm_eval=True"),
    ],
)
def test_statistics_follow_large_batches(tmp_path, trained, norton, batch, kept, why):
    changes = {**trained, **_with_batches(tmp_path, batch)}
    _, (fresh, between, _) = _watched(tmp_path, {**NORTON, **norton}, epochs=2, **changes)
    assert set(_moved(fresh, between).values()) == {not kept}
    what = "keep" if kept else "update"
    assert f"BatchNorms {what} their statistics while the compressed model trains ({why}" in _said(tmp_path)


def test_statistics_of_random_weights_are_not_kept(tmp_path):
    _, (fresh, between, _) = _watched(tmp_path, NORTON, epochs=2)
    assert all(_moved(fresh, between).values())


def test_statistics_that_could_not_be_estimated_are_not_kept(tmp_path, trained, monkeypatch):
    def fail(*_, **__):
        raise SurgeryError("statistics are not finite")

    monkeypatch.setattr(after_surgery, "reestimate_batch_norm_", fail)
    _, (fresh, between, _) = _watched(tmp_path, NORTON, epochs=2, **trained)
    assert all(_moved(fresh, between).values())


def test_a_resumed_run_keeps_statistics_as_it_began(tmp_path, trained):
    _watched(tmp_path, NORTON, epochs=1, **trained)
    path = tmp_path / "epoch_1.pth"
    for stored, kept in ((True, True), (None, False)):  # None: written before there was such a decision
        checkpoint = torch.load(path, weights_only=False)
        assert checkpoint["meta"]["norton"].pop("norm_eval", True)
        if stored is not None:
            checkpoint["meta"]["norton"]["norm_eval"] = stored
        torch.save(checkpoint, path)
        changes = {"load_from": str(path), "resume": True, "log_level": "INFO", **_with_batches(tmp_path, 32)}
        _, seen = _watched(tmp_path, NORTON, epochs=2, **changes)
        assert set(_moved(seen[0], seen[-1]).values()) == {not kept}
    assert "as before the run was resumed" in _said(tmp_path)


def test_statistics_follow_the_batches_as_long_as_the_model_is_dense(tmp_path):
    _, seen = _watched(tmp_path, {**NORTON, "norm_eval": True, "at_epoch": 1}, epochs=3)
    first, second, third, last = seen
    assert first["stage.norm1.running_mean"].shape != second["stage.norm1.running_mean"].shape
    assert not any(_moved(second, third).values()) and not any(_moved(third, last).values())


def test_a_word_for_norm_eval_is_refused():
    with pytest.raises(RecipeError, match="norm_eval is 'yes'; expected True, False or None"):
        NortonHook(rank=2, norm_eval="yes")


def test_efficient_conv_bn_eval_is_refused(tmp_path):
    """T9."""
    with pytest.raises(RecipeError, match="efficient_conv_bn_eval"):
        run(tmp_path, efficient_conv_bn_eval=["stage"])


def test_a_second_hook_is_refused_before_anything_is_done(tmp_path):
    again = [{"type": "norton_plugin.NortonHook", "keep": 0.6}]
    with pytest.raises(RecipeError, match="NortonHook is in this run more than once.*custom_hooks; keep one"):
        run(tmp_path, custom_hooks=again)
    assert not list(tmp_path.glob("*.pth"))


def test_a_mean_teacher_is_refused(tmp_path):
    """T23."""
    runner = Runner.from_cfg(toy_config(tmp_path, norton=NORTON))
    runner.register_hook(type("MeanTeacherHook", (Hook,), {})())
    with pytest.raises(RecipeError, match="MeanTeacherHook"):
        runner.train()


def test_at_epoch_that_never_comes(tmp_path):
    with pytest.raises(RecipeError, match="ends after 2 epochs"):
        run(tmp_path, norton={**NORTON, "at_epoch": 2})


def test_activation_checkpointing(tmp_path):
    """T16: compression does not run on the original through a wrapped forward, and the result is the same."""
    plain = run(tmp_path / "a", epochs=1)
    checked = run(tmp_path / "b", epochs=1, activation_checkpointing=["shared"])
    assert "forward" in vars(checked.model.shared)  # put on the block as well
    assert difference(plain.model.state_dict(), checked.model.state_dict()) == 0.0


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_compiled_step_is_compiled_again(tmp_path, epoch):
    """T10: the result is that of a run without compilation, also where compiled code had run before."""
    norton = {**NORTON, "at_epoch": epoch}
    plain = run(tmp_path / "a", norton=norton)
    compiled = run(tmp_path / "b", norton=norton, compile={"backend": "eager"})
    assert "train_step" in vars(compiled.model)
    assert difference(plain.model.state_dict(), compiled.model.state_dict()) < 1e-6


def test_scaled_rates_and_accumulation_stay(tmp_path):
    wrapper = toy_config(tmp_path).optim_wrapper.to_dict() | {"accumulative_counts": 2}
    runner = run(
        tmp_path,
        epochs=1,
        optim_wrapper=wrapper,
        param_scheduler=None,
        auto_scale_lr={"enable": True, "base_batch_size": 8},
    )
    by_parameter = {id(p): group for group in runner.optim_wrapper.param_groups for p in group["params"]}
    assert by_parameter[id(runner.model.stage["conv1"].head)]["lr"] == pytest.approx(0.025)
    state = runner.optim_wrapper.optimizer.state
    assert {id(p) for p in state} == {id(p) for p in runner.model.parameters() if p.requires_grad}


def test_test_time_augmentation(whole, logits, tmp_path):
    """T7: the model inside is restructured, and checked."""
    path = str(whole[1] / "epoch_4.pth")
    changes = {"model": {"type": "ToyTTA", "module": {"type": "ToyNet"}}, "load_from": path, "custom_hooks": []}
    config = toy_config(tmp_path, norton=NORTON, **changes)
    for loader in (config.test_dataloader, config.val_dataloader):
        loader.dataset = {"type": "ToyAugmented"}
        loader.collate_fn = {"type": "pseudo_collate"}
    assert Runner.from_cfg(config).test()["sum"] == pytest.approx(logits, rel=1e-5)
    del config.default_hooks.norton
    config.experiment_name += "_dense"
    with pytest.raises(ArtifactError, match="another one"):
        Runner.from_cfg(config).test()


def test_several_optimizers(tmp_path):
    """T1 with an OptimWrapperDict."""
    from norton_plugin.mm.runner.migration import migrate_
    from norton_plugin.pipeline import compress
    from norton_plugin.recipe import Recipe
    from norton_plugin.surgery import apply_structure_

    runner = Runner.from_cfg(toy_config(tmp_path, epochs=1))
    runner.train()
    from mmengine.optim import OptimWrapper, OptimWrapperDict

    model = runner.model
    body = torch.optim.Adam(model.stage.parameters(), lr=0.1)
    rest = torch.optim.SGD([*model.shared.parameters(), *model.fc.parameters()], lr=0.1)
    runner.optim_wrapper = OptimWrapperDict(body=OptimWrapper(body), rest=OptimWrapper(rest))
    recipe = Recipe.from_dict({"decomposition": {"rank": 2}, "pruning": {"keep": 0.5}})
    _, report = compress(model, torch.randn(1, 3, 12, 12), recipe)
    done = migrate_(runner, lambda live: apply_structure_(live, report.structure))
    assert {id(p) for p in body.param_groups[0]["params"]} == {id(p) for p in model.stage.parameters()}
    expected = {id(p) for m in (model.shared, model.fc) for p in m.parameters()}
    assert {id(p) for p in rest.param_groups[0]["params"]} == expected
    assert done.averages == 1 and not done.rewrapped


def test_pretrained_weights_are_what_is_compressed(tmp_path):
    """Weights of init_cfg arrive after before_run; compression comes later. T11: init_weights leaves blocks alone."""
    source = ToyNet()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "dense.pth")
    model = {"type": "ToyNet", "init_cfg": {"type": "Pretrained", "checkpoint": str(tmp_path / "dense.pth")}}
    runner = run(
        tmp_path, epochs=1, model=model, norton={"rank": 9, "keep": 1.0, "allow_more_macs": True, "sweeps": 1000}
    )
    assert torch.equal(runner.model.stem.weight, source.stem.weight)
    before = copy.deepcopy(runner.model.state_dict())
    for module in runner.model.modules():
        if isinstance(module, CPDBlock):
            module.init_weights()
    assert difference(runner.model.state_dict(), before) == 0.0


def test_the_exported_config_builds_the_model_without_the_hook(whole, logits, tmp_path):
    folder = whole[1]
    from mmengine.config import Config

    config = Config.fromfile(folder / "norton_config.py")
    assert "norton" not in config.default_hooks and config.model.type == "norton_plugin.mm.CompressedModel"
    config.merge_from_dict({"work_dir": str(tmp_path), "load_from": str(folder / "epoch_4.pth")})
    config.experiment_name = "exported"
    assert Runner.from_cfg(config).test()["sum"] == pytest.approx(logits, rel=1e-5)
    code = (
        "import sys; from mmengine.config import Config; from mmengine.registry import MODELS; "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); import toy; "
        f"print(type(MODELS.build(Config.fromfile({str(folder / 'norton_config.py')!r}).model).shared).__name__)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split()[-1] == "CPDBlock"


def test_export_clears_initial_weights_everywhere(whole):
    structure = hook_of(whole[0]).structure
    config = toy_config("x", norton=NORTON, model={"type": "ToyNet", "a": [{"init_cfg": 1, "pretrained": "y"}]})
    exported = export_config(config, structure)
    assert exported.model.a[0] == {"init_cfg": None, "pretrained": None}
    assert config.model.a[0].init_cfg == 1 and "norton" in config.default_hooks
    with pytest.raises(RecipeError, match="already"):
        export_config(exported, structure)


def test_the_hook_notices_a_model_that_was_rebuilt(tmp_path):
    runner = run(tmp_path, epochs=1)
    runner.model = MODELS.build({"type": "ToyNet"})
    with pytest.raises(ArtifactError, match="lost its compressed structure"):
        runner.save_checkpoint(str(tmp_path), "x.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distill": {"layers": "shared", "weight": 0.01}, "factor_decay": 0.3},
        {"level": "cluster", "clusters": 3, "factor_decay": "auto", "batch_norm": False},
        {"calibrate": True},
    ],
    ids=["plain", "distilled", "clusters", "calibrated"],
)
def test_two_processes(tmp_path, options):
    """T2, T21, T22: after the wrapper is made anew both ranks train the same parameters."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    script = str(Path(__file__).parent / "toy.py")
    done = subprocess.run(
        [*command, script, str(tmp_path), json.dumps(options)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    assert all(rank["same"] and rank["reduced"] for rank in ranks)
    heads = [name for name in ranks[0]["state"] if name.endswith(".head")]
    assert heads
    if "level" in options:  # the second rank knows by the first alone where filters sit
        slots = [value for name, value in ranks[1]["state"].items() if name.endswith(".slot")]
        assert any(not torch.equal(slot, slot.sort().values) for slot in slots)
    for part in ("state", "ema"):
        names = [n for n in ranks[0][part] if "running" not in n]  # BatchNorm statistics are each rank's own
        assert max(float((ranks[0][part][n] - ranks[1][part][n]).abs().max()) for n in names) == 0.0


STILL = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.0}}  # training changes nothing


def test_batch_norm_statistics_after_surgery(tmp_path):
    """With norm_eval nothing would ever renew them: they are those of the training images under the new weights."""
    model = {"type": "ToyNet", "norm_eval": True}
    net = run(tmp_path, epochs=1, model=model, optim_wrapper=STILL).model
    assert json.loads((tmp_path / "norton_report.json").read_text())["calibration_images"] == 16
    with torch.no_grad():
        x = net.stage["conv1"](torch.relu(net.stem(ToyData().images)))
    assert torch.allclose(net.stage["norm1"].running_mean, x.mean((0, 2, 3)), atol=1e-5)
    left = run(tmp_path / "left", epochs=1, model=model, norton={**NORTON, "batch_norm": False}).model
    assert torch.equal(left.stage["norm1"].running_mean, torch.zeros(8))


def test_norms_before_the_first_changed_layer_keep_their_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    entries = [{"names": [""], "resize": {}, "attributes": {"a": 1}}, {"names": ["2"], "block": {"rank": 1}}]
    unchanged = after_surgery.before_surgery(net, {"modules": entries}, lambda: net(torch.rand(2, 3, 4, 4)))
    assert unchanged == {net[1]} and net.training
    assert torch.equal(net[3].running_mean, torch.zeros(4)) and not net[1]._forward_pre_hooks


@MODELS.register_module(force=True)
class ToyLastFirst(ToyNet):
    """Registers a norm before the layers that run before it, as mmdet's CSPLayer does."""

    def __init__(self, **settings):
        super().__init__(**settings)
        parts = dict(self.stage.items())
        self.stage = nn.ModuleDict({name: parts[name] for name in ("norm2", "conv2", "norm1", "conv1")})


@MODELS.register_module(force=True)
class ToyByMode(ToyNet):
    """Gives its losses in training mode alone, as heads of VFNet, RepPoints and DINO do."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss" and not self.training:
            raise AssertionError("what evaluation mode gives is no input of the loss")
        return super().forward(inputs, data_samples, mode)


@pytest.mark.parametrize("kind", ["ToyLastFirst", "ToyByMode"])
def test_statistics_are_those_of_training_images_however_a_model_is_written(tmp_path, kind):
    net = run(tmp_path, epochs=1, model={"type": kind, "norm_eval": True}, optim_wrapper=STILL).model
    with torch.no_grad():
        x = net.stage["conv1"](torch.relu(net.stem(ToyData().images)))
        assert torch.allclose(net.stage["norm1"].running_mean, x.mean((0, 2, 3)), atol=1e-5)
    assert not torch.equal(net.stage["norm2"].running_mean, torch.zeros(16))
    assert json.loads((tmp_path / "norton_report.json").read_text())["calibration_images"] == 16


def test_evaluation_after_surgery(tmp_path):
    """The score is that of the compressed weights before the first step."""
    model = {"type": "ToyNet", "norm_eval": True}
    net = run(tmp_path, epochs=1, model=model, optim_wrapper=STILL, norton={**NORTON, "evaluate": True}).model
    metrics = json.loads((tmp_path / "norton_report.json").read_text())["metrics_after_surgery"]
    with torch.no_grad():
        assert metrics == {"sum": pytest.approx(float(net.eval()(ToyData().images).double().sum()), rel=1e-4)}
