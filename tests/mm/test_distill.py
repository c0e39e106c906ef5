"""NortonHook's options about what the compressed model learns from, and how its factors decay."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_plugin.blocks import CPDBlock, CPDLinear
from norton_plugin.errors import ArtifactError, RecipeError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import CosineRestartLR, ReduceOnPlateauLR
from mmengine.optim.scheduler.param_scheduler import CosineRestartParamScheduler
from mmengine.runner import CheckpointLoader, Runner, turn_on_activation_checkpointing

sys.path.insert(0, str(Path(__file__).parent))
from toy import NORTON, ToyData, ToyNet, difference, run, toy_config

from norton_plugin.distillation import distillation_loss, feature_loss
from norton_plugin.mm import NortonHook, TimmClassifier
from norton_plugin.mm.distillation.losses import FeatureDistillation
from norton_plugin.mm.distillation.teacher import FILE, DenseTeacher, DistillSettings
from norton_plugin.mm.runner.optimizer import split_factors_
from norton_plugin.mm.runner.quiet import preserved_process

DISTILL = {"weight": 0.01, "layers": ["stage.norm2", "shared"]}


def test_feature_loss_is_the_relative_squared_error():
    teacher = [torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])]
    student = [torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0]])]
    assert feature_loss(student, teacher).item() == pytest.approx((1 / 25 + 1 / 4) / 2)
    assert feature_loss(teacher, teacher).item() == 0.0


def test_the_loss_is_added_while_training_only():
    torch.manual_seed(0)
    model, teacher = ToyNet(), ToyNet().eval()
    plain = copy.deepcopy(model)
    data = ToyData()
    batch = {"inputs": data.images[:4], "data_samples": torch.tensor([0, 1, 2, 0])}
    learning = FeatureDistillation(model, teacher, ["stage.conv2"], weight=3.0)
    losses = model.train()(**batch, mode="loss")

    def feature(net, x):
        x = F.relu(net.stem(x))
        return net.stage["conv2"](F.relu(net.stage["norm1"](net.stage["conv1"](x))))

    own, target = feature(plain.train(), batch["inputs"]), feature(teacher, batch["inputs"])
    assert losses["loss_distill"].item() == pytest.approx(
        3 * float((own - target).square().sum() / target.square().sum()), rel=1e-5
    )
    assert losses["loss"].item() == pytest.approx(float(copy.deepcopy(plain)(**batch, mode="loss")["loss"]), rel=1e-5)
    losses["loss_distill"].backward()
    assert model.stage["conv1"].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert set(model.eval()(**batch, mode="loss")) == {"loss"}
    assert isinstance(model(batch["inputs"]), torch.Tensor)
    learning.remove()
    assert set(model.train()(**batch, mode="loss")) == {"loss"}


def test_outputs_without_gradient_are_an_error():
    """The loss would be logged and do nothing: a frozen stem, a layer within activation checkpointing (T16)."""
    batch = (ToyData().images[:4], torch.zeros(4, dtype=torch.long))
    model = ToyNet().train()
    learning = FeatureDistillation(model, ToyNet(), ["stem"], weight=1.0)
    with pytest.raises(RecipeError, match="outputs of stem, which carry no gradient"):
        model(*batch, mode="loss")
    learning.remove()
    model.part = model.alias = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())
    teacher = copy.deepcopy(model)
    turn_on_activation_checkpointing(model, ["part"])
    FeatureDistillation(model, teacher, ["part.0"], weight=1.0)
    with pytest.raises(RecipeError, match="outputs of part.0, which carry no gradient"):
        model(*batch, mode="loss")


def test_layers_beyond_the_neck_of_a_two_stage_detector():
    """They run on what the data samples say of the images."""
    pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")
    from detectors import faster_rcnn
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(faster_rcnn())).train()
    teacher = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in teacher.rpn_head.rpn_conv.parameters():
            parameter.mul_(2)  # linear: the student gives half of what the teacher does
    shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (64, 64))
    sample = DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([0]))
    FeatureDistillation(model, teacher, ["rpn_head.rpn_conv"], weight=1.0)
    losses = model(torch.randn(1, 3, 64, 64), [sample], mode="loss")
    assert losses["loss_distill"].item() == pytest.approx(0.25, rel=1e-3)


def test_other_widths_are_an_error():
    model, teacher = ToyNet(), ToyNet()
    model.stage["conv1"] = nn.Conv2d(8, 12, 3, padding=1)
    model.stage["norm1"], model.stage["conv2"] = nn.BatchNorm2d(12), nn.Conv2d(12, 16, 3, stride=2, padding=1)
    FeatureDistillation(model, teacher, ["stage.conv1"], weight=1.0)
    with pytest.raises(RecipeError, match=r"\(4, 12, 12, 12\).*\(4, 16, 12, 12\).*keeps"):
        model.train()(ToyData().images[:4], torch.zeros(4, dtype=torch.long), mode="loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with preserved_process():
        return run(folder, epochs=4, norton={"distill": DISTILL}), folder


def test_what_is_distilled_keeps_its_width_and_the_rest_is_pruned(whole):
    model = whole[0].model
    assert isinstance(model.stage["conv1"], CPDBlock) and model.stage["conv1"].out_channels == 8
    assert model.stage["norm2"].num_features == 16 and model.shared.out_channels == 16


def test_the_teacher_is_nobodys_parameter(whole):
    runner, folder = whole
    checkpoint = CheckpointLoader.load_checkpoint(str(folder / "epoch_4.pth"), "cpu")
    assert not any("teacher" in name for name in checkpoint["state_dict"])
    assert len(checkpoint["state_dict"]) == len(runner.model.state_dict())
    optimized = sum(len(group["params"]) for group in runner.optim_wrapper.optimizer.param_groups)
    assert optimized == sum(p.requires_grad for p in runner.model.parameters())
    # The file holds the dense weights that the run started with.
    kept = torch.load(folder / FILE, weights_only=True)["state_dict"]
    torch.manual_seed(0)
    assert kept["shared.weight"].shape == (16, 16, 3, 3) and kept.keys() == ToyNet().state_dict().keys()


def test_it_changes_what_is_learnt_and_resumes_exactly(whole, tmp_path):
    first, folder = whole
    resumed = run(
        tmp_path / "resumed",
        epochs=4,
        norton={"distill": DISTILL},
        load_from=str(folder / "epoch_2.pth"),
        resume=True,
    )
    assert difference(resumed, first) == 0.0
    plain = run(tmp_path / "plain", epochs=4, norton={"distill": {**DISTILL, "weight": 1e-9}})
    assert difference(plain, first) > 1e-4


def test_a_compiled_step_learns_the_same(tmp_path):
    plain = run(tmp_path / "plain", epochs=1, norton={"distill": DISTILL})
    compiled = run(tmp_path / "compiled", epochs=1, norton={"distill": DISTILL}, compile={"backend": "eager"})
    assert difference(plain, compiled) < 1e-6


def test_a_resumed_run_in_another_folder_can_be_resumed_there(whole, tmp_path):
    """It has the dense weights as well: ``--resume`` alone names no other folder."""
    first, folder = whole
    options = {"epochs": 4, "norton": {"distill": DISTILL}, "resume": True}
    (tmp_path / "norton_teacher.pth").write_bytes(b"of an older run")
    run(tmp_path, **options, load_from=str(folder / "epoch_1.pth"))
    for name in ("epoch_4.pth", "epoch_3.pth"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    assert difference(run(tmp_path, **options), first) == 0.0


def test_a_resumed_run_without_the_dense_weights_ends_at_once(whole, tmp_path):
    _, folder = whole
    (tmp_path / "alone").mkdir()
    checkpoint = tmp_path / "alone" / "epoch_2.pth"
    checkpoint.write_bytes((folder / "epoch_2.pth").read_bytes())
    options = {"epochs": 4, "norton": {"distill": DISTILL}, "load_from": str(checkpoint), "resume": True}
    with pytest.raises(ArtifactError, match=f"{FILE}.*copy it there"):
        run(tmp_path / "work", **options)
    (tmp_path / "alone" / FILE).write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="another SHA-256"):
        run(tmp_path / "work", **options)


def test_a_checkpoint_without_distillation_has_no_teacher(tmp_path):
    run(tmp_path / "plain", epochs=2)
    with pytest.raises(ArtifactError, match="leave distill out"):
        run(
            tmp_path / "work",
            epochs=3,
            norton={"distill": True},
            load_from=str(tmp_path / "plain" / "epoch_1.pth"),
            resume=True,
        )


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ("yes", "'yes'; expected True"),
        ({"wieght": 1}, "unknown setting 'wieght'"),
        ({"weight": 0}, "distill.weight is 0"),
        ({"temperature": -1}, "distill.temperature is -1"),
        ({"block_weight": -1}, "distill.block_weight is -1"),
        ({"block_weight": 1.0}, "goes with the logits of a TimmClassifier"),
        ({"layers": []}, r"distill.layers is \[\]"),
        ({"layers": ["stage.conv9"]}, "'stage.conv9', which the ToyNet does not have"),
        (True, "neither neck nor backbone"),
    ],
)
def test_bad_settings(distill, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        run(tmp_path, norton={"distill": distill})
    assert not list(tmp_path.glob("*.pth"))


def test_a_classifier_learns_from_the_logits():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))  # noqa: E731
    student, dense = TimmClassifier(make()), TimmClassifier(make())
    settings = DistillSettings.from_option({"weight": 0.3, "temperature": 2.0})
    assert settings.layers_of(student) == ()
    teacher = DenseTeacher(dense)
    assert teacher.attach(student, settings) is None
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 4])
    losses = student(images, labels, mode="loss")
    logits = student.model(images)
    assert losses["loss_ce"].item() == pytest.approx(0.7 * float(F.cross_entropy(logits, labels)), rel=1e-5)
    expected = distillation_loss(logits, dense.model.eval()(images), temperature=2.0)
    assert losses["loss_kd"].item() == pytest.approx(0.3 * float(expected), rel=1e-5)
    with pytest.raises(RecipeError, match="at most 1"):
        DistillSettings(weight=1.5).layers_of(student)

    settings = DistillSettings.from_option({"weight": 0.3, "block_weight": 2.0})
    teacher.attach(student, settings)
    own, target = student.model[0](images), dense.model[0](images)
    error = float((own - target).square().sum() / target.square().sum())
    assert student(images, labels, mode="loss")["loss_blocks"].item() == pytest.approx(0.3 * 2 * error, rel=1e-5)
    for refused in (nn.Module(), ToyNet()):
        with pytest.raises(RecipeError, match="goes with the logits of a TimmClassifier"):
            settings.layers_of(refused)


class Groups(Hook):
    """Notes decay and learning rate of every parameter at every step."""

    priority = "LOWEST"

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = {p: name for name, p in runner.model.named_parameters()}
        groups = runner.optim_wrapper.optimizer.param_groups
        self.seen.append({names[p]: (g["weight_decay"], g["lr"]) for g in groups for p in g["params"]})


def trained(work_dir, factor_decay, **changes):
    config = toy_config(work_dir, norton={**NORTON, "factor_decay": factor_decay}, epochs=4, **changes)
    runner = Runner.from_cfg(config)
    groups = Groups()
    runner.register_hook(groups)
    runner.train()
    return runner, groups.seen


@pytest.mark.parametrize("grouping", ["one group", "a group for each parameter"])
def test_factors_decay_by_themselves_and_their_rates_do_not_change(tmp_path, grouping):
    changes = {}
    if grouping == "one group":
        changes["optim_wrapper"] = {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.05, "weight_decay": 3e-3},
        }
    # A schedule that needs the groups' base values: T_max is passed, the rate rises again.
    changes["param_scheduler"] = [{"type": "CosineAnnealingLR", "T_max": 2, "by_epoch": True, "eta_min_ratio": 0.1}]
    _, plain = trained(tmp_path / "plain", None, **changes)
    runner, own = trained(tmp_path / "own", 0.5, **changes)
    factors = {
        f"{name}.{factor}"
        for name, module in runner.model.named_modules()
        if isinstance(module, CPDBlock)
        for factor in ("head", "vertical", "horizontal")
    }
    assert factors and len(own) == len(plain) == 16
    for one, other in zip(plain, own, strict=True):
        assert one.keys() == other.keys()
        for name, (decay, rate) in one.items():
            assert other[name] == (pytest.approx(decay * (0.5 if name in factors else 1)), pytest.approx(rate)), name
    assert len({rate for step in own for _, rate in step.values()}) > 3


def grouped():
    """A block with a linear layer in one group, another layer in a second: mmengine counts a third of its own."""
    model = nn.ModuleDict({"block": CPDBlock(4, 4, 3, 2), "fc": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    groups = [{"params": [*model["fc"].parameters(), *model["block"].parameters()], "lr": 0.1}]
    groups.append({"params": list(model["head"].parameters()), "lr": 0.01})
    return model, OptimWrapper(torch.optim.SGD(groups, lr=1.0, weight_decay=0.4))


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (lambda w: CosineRestartLR(w, periods=[2, 2], restart_weights=[1, 0.5], eta_min_ratio=0.1), "lr"),
        (lambda w: ReduceOnPlateauLR(w, monitor="loss", patience=0, factor=0.5), "lr"),
        (lambda w: CosineRestartParamScheduler(w, "weight_decay", [2, 2], [1, 0.5], eta_min_ratio=0.1), "weight_decay"),
    ],
    ids=["restart", "plateau", "scheduled decay"],
)
def test_schedules_follow_the_groups(schedule, name):
    """Every schedule gives the factors what it gives the group they come from, times the multiplier for decay."""

    def values(split):
        model, wrapper = grouped()
        scheduler = schedule(wrapper)
        if split:
            assert split_factors_(wrapper.optimizer, [scheduler], model, factor_decay=0.25) == 1
        names, seen = {p: name for name, p in model.named_parameters()}, []
        for _ in range(4):
            wrapper.optimizer.step()
            scheduler.step(*([{"loss": 1.0}] if isinstance(scheduler, ReduceOnPlateauLR) else []))
            groups = wrapper.optimizer.param_groups
            seen.append({names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]})
        assert len(scheduler.get_last_value()) == len(wrapper.param_groups)
        return seen

    factors = {f"block.{factor}" for factor in ("head", "vertical", "horizontal")}
    for before, after in zip(values(False), values(True), strict=True):
        for parameter, (rate, decay) in before.items():
            share = 0.25 if parameter in factors else 1.0
            assert after[parameter] == (pytest.approx(rate), pytest.approx(decay * share)), parameter
    assert len({step["fc.weight"][name == "weight_decay"] for step in values(True)}) > 1


def test_factors_of_several_levels_in_one_group():
    """Each part of the group has the rate and the schedule of the whole, and decays by its number of factors."""
    shared = CPDBlock(4, 4, 3, 2, clusters=1)
    model = nn.ModuleDict(
        {"own": CPDBlock(4, 4, 3, 2), "fc": nn.Linear(2, 2), "shared": shared, "svd": CPDLinear(2, 2, 1)}
    )
    names = {p: name for name, p in model.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(list(model.parameters()), lr=0.1, weight_decay=1.2))
    decay = CosineRestartParamScheduler(wrapper, "weight_decay", [2, 2], [1, 0.5], eta_min_ratio=0.1)
    plateau = ReduceOnPlateauLR(wrapper, monitor="loss", patience=0, factor=0.5)
    assert split_factors_(wrapper.optimizer, [decay, plateau], model, factor_decay="auto") == 3
    groups = wrapper.optimizer.param_groups
    assert [{names[p].partition(".")[0] for p in g["params"]} for g in groups[1:]] == [{"shared"}, {"own"}, {"svd"}]
    assert [g["weight_decay"] for g in groups] == pytest.approx([1.2, 0.3, 0.4, 0.6])
    for _ in range(3):
        wrapper.optimizer.step()
        decay.step()
        plateau.step({"loss": 1.0})
        first, *others = groups
        assert [g["lr"] for g in others] == [first["lr"]] * 3
        shares = [g["weight_decay"] / first["weight_decay"] for g in others]
        assert shares == pytest.approx([1 / 4, 1 / 3, 1 / 2])
    assert groups[0]["lr"] < 0.1 and groups[0]["weight_decay"] != 1.2


def test_an_optimizer_without_decay():
    model, _ = grouped()
    with pytest.raises(RecipeError, match="Rprop has no weight_decay"):
        split_factors_(torch.optim.Rprop(model.parameters()), [], model, factor_decay=0.5)


def test_own_decay_resumes_exactly(tmp_path):
    first, _ = trained(tmp_path / "first", 0.0)
    resume = {"load_from": str(tmp_path / "first" / "epoch_2.pth"), "resume": True}
    second, _ = trained(tmp_path / "second", 0.0, **resume)
    assert difference(first, second) == 0.0
    with pytest.raises(RecipeError, match="factor_decay 0.0 there, 0.5 here"):
        trained(tmp_path / "third", 0.5, **resume)


@pytest.mark.parametrize("value", [-1, True, float("nan"), "third"])
def test_bad_decay(value):
    with pytest.raises(RecipeError, match="factor_decay"):
        NortonHook(rank=2, factor_decay=value)


def test_the_model_straight_after_surgery_can_be_kept(tmp_path):
    runner = run(tmp_path, epochs=1, norton={"checkpoint": True})
    fresh = CheckpointLoader.load_checkpoint(str(tmp_path / "norton_surgery.pth"), "cpu")
    assert fresh["state_dict"].keys() == runner.model.state_dict().keys()
    assert "optimizer" not in fresh and fresh["meta"]["epoch"] == 0
    assert not torch.equal(fresh["state_dict"]["fc.weight"], runner.model.fc.weight)
    tested = Runner.from_cfg(
        toy_config(tmp_path / "test", norton=NORTON, load_from=str(tmp_path / "norton_surgery.pth"))
    )
    model = tested.test() and tested.model
    assert torch.equal(model.stage["conv1"].head, fresh["state_dict"]["stage.conv1.head"])
