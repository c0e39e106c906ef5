import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_plugin.errors import RecipeError, SourceError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner import Runner
from PIL import Image

from norton_plugin.mm import TimmClassifier
from norton_plugin.mm.runner.quiet import preserved_process


@pytest.fixture
def classifier():
    return TimmClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))


IMAGES, LABELS = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 1])


def test_modes(classifier):
    logits = classifier(IMAGES)
    assert torch.equal(logits, classifier.model(IMAGES))
    loss = classifier(IMAGES, LABELS, mode="loss")
    assert loss["loss_ce"].item() == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-6)
    predicted = classifier(IMAGES, LABELS, mode="predict")
    assert [int(p["gt_label"]) for p in predicted] == [0, 1, 2, 1]
    assert torch.equal(torch.stack([p["pred_score"] for p in predicted]), logits.softmax(1))
    assert "gt_label" not in classifier(IMAGES, mode="predict")[0]


class Redrawn(nn.Linear):
    """A layer that draws new weights when it is asked to, as timm's models do."""

    def init_weights(self):
        self.weight.data.fill_(7.0)


class Configured(BaseModule):
    """A model of mmengine's kind, which initialises itself by its own config."""

    def __init__(self):
        super().__init__({"type": "Constant", "layer": "Linear", "val": 5.0})
        self.fc = nn.Linear(2, 3)


@pytest.mark.parametrize("init_cfg", [None, {"type": "Constant", "layer": "Linear", "val": 3.0}])
@pytest.mark.parametrize("kind", [lambda: Redrawn(2, 3), Configured])
def test_a_model_keeps_its_weights_when_a_run_starts(kind, init_cfg):
    model = kind()
    before, attributes = model.state_dict(), {name for name in vars(model) if "init" in name}
    before = {name: value.clone() if init_cfg is None else value * 0 + 3 for name, value in before.items()}
    classifier = TimmClassifier(model, init_cfg=init_cfg)
    for _ in range(2):
        classifier.init_weights()
        weight = next(name for name in before if name.endswith("weight"))
        assert torch.equal(model.state_dict()[weight], before[weight])
    assert classifier.is_init and {name for name in vars(model) if "init" in name} == attributes


def test_label_smoothing(classifier):
    classifier.label_smoothing = 0.3
    expected = F.cross_entropy(classifier(IMAGES), LABELS, label_smoothing=0.3)
    assert torch.equal(classifier(IMAGES, LABELS, mode="loss")["loss_ce"], expected)


def test_distillation_is_weighted_and_the_teacher_is_in_no_state_dict(classifier):
    names, plain = list(classifier.state_dict()), classifier(IMAGES, LABELS, mode="loss")["loss_ce"]
    classifier.set_teacher(classifier.model, weight=0.25)
    losses = classifier(IMAGES, LABELS, mode="loss")
    assert float(losses["loss_ce"]) == pytest.approx(0.75 * float(plain), rel=1e-6)
    assert float(losses["loss_kd"]) == pytest.approx(0, abs=1e-6)
    assert list(classifier.state_dict()) == names
    classifier.set_teacher(None)
    assert "loss_kd" not in classifier(IMAGES, LABELS, mode="loss")


def test_folders_of_other_classes_are_refused_before_anything_is_done(tmp_path):
    for split, names in (("train", ("blue", "red")), ("val", ("red",))):
        for color in names:
            (tmp_path / split / color).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (40, 40), color).save(tmp_path / split / color / f"{i}.png")
    loader = {"batch_size": 2, "num_workers": 0, "collate_fn": {"type": "collate_batch"}}
    preprocessing = {"input_size": [3, 32, 32]}
    data = {"type": "NortonImageFolder", "preprocessing": preprocessing}
    config = {
        "model": {"type": "TimmClassifier", "model": {"spec": "timm:resnet10t", "num_classes": 2, "input_size": 32}},
        "train_dataloader": {
            **loader,
            "sampler": {"type": "DefaultSampler"},
            "dataset": {**data, "root": str(tmp_path / "train")},
        },
        "val_dataloader": {
            **loader,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {**data, "root": str(tmp_path / "val")},
        },
        "val_cfg": {},
        "val_evaluator": {"type": "TopKAccuracy"},
        "train_cfg": {"by_epoch": True, "max_epochs": 1},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "default_hooks": {"norton": {"type": "norton_plugin.NortonHook", "rank": 1}},
        "work_dir": str(tmp_path / "work"),
        "default_scope": "mmengine",
        "experiment_name": "other_classes",
    }
    with preserved_process():
        runner = Runner.from_cfg(Config(config))
        with pytest.raises(RecipeError, match=r"1 sub-folders \(red\), the training images 2 \(blue, red\)"):
            runner.train()
        (tmp_path / "val" / "blue").mkdir()
        config["experiment_name"] = "same_classes"
        runner = Runner.from_cfg(Config(config))
        runner.train()
    assert runner.iter == 2


def test_a_batch_of_which_no_image_can_be_read(classifier):
    assert classifier.val_step({}) == classifier.test_step({}) == []
    with pytest.raises(SourceError, match="none of the images of a batch can be read"):
        classifier.train_step({}, None)


def two_blocks():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    return nn.Sequential(block, nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 3))


def test_blocks_are_held_against_those_of_the_teacher_beside_the_logits():
    teacher = two_blocks()
    classifier = TimmClassifier(copy.deepcopy(teacher))
    with torch.no_grad():
        classifier.model[1].weight.mul_(1.5)
        classifier.model[1].bias.mul_(1.5)
    classifier.set_teacher(teacher, weight=0.25)
    plain = classifier(IMAGES, LABELS, mode="loss")
    assert set(plain) == {"loss_ce", "loss_kd"}
    classifier.set_teacher(teacher, weight=0.25, block_weight=3.0)
    losses = classifier(IMAGES, LABELS, mode="loss")
    assert {name: losses[name].item() for name in plain} == {name: plain[name].item() for name in plain}
    # Of the two convolutions (the classifier gives the logits) one is right, one half as much again: 0.5^2 / 2.
    assert losses["loss_blocks"].item() == pytest.approx(0.25 * 3 * 0.25 / 2, rel=1e-5)
    losses["loss_blocks"].backward()
    assert classifier.model[1].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(m._forward_hooks for model in (classifier.model, teacher) for m in model.modules())


def test_a_teacher_of_other_blocks_or_widths_gives_its_logits_alone():
    wider = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(20, 3))
    deeper = nn.Sequential(*two_blocks()[:2], nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 3))
    for teacher in (wider, deeper):
        classifier = TimmClassifier(two_blocks())
        classifier.set_teacher(teacher, block_weight=1.0)
        assert set(classifier(IMAGES, LABELS, mode="loss")) == {"loss_ce", "loss_kd"}


def test_a_source_brings_its_normalisation():
    classifier = TimmClassifier({"spec": "timm:resnet10t", "num_classes": 3, "input_size": 32}, {"flip": True})
    assert classifier.data_preprocessor.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert classifier.data_preprocessor.flip
    assert classifier.logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_bad_calls(classifier):
    with pytest.raises(RecipeError, match="mode is 'fit'"):
        classifier(IMAGES, mode="fit")
    with pytest.raises(SourceError, match="training needs labels"):
        classifier(IMAGES, mode="loss")
    with pytest.raises(SourceError, match="a label is 3, but the model has 3 outputs"):
        classifier(IMAGES, LABELS + 1, mode="loss")
    with pytest.raises(RecipeError, match="label_smoothing is 1"):
        TimmClassifier(nn.Identity(), label_smoothing=1)
    with pytest.raises(RecipeError, match="temperature"):
        classifier.set_teacher(nn.Identity(), temperature=0)
    with pytest.raises(RecipeError, match="block weight -1"):
        classifier.set_teacher(nn.Identity(), block_weight=-1)


def test_an_mmengine_config_trains_it(tmp_path):
    for color in ("red", "blue"):
        (tmp_path / "data" / color).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20 + i, 18), color).save(tmp_path / "data" / color / f"{i}.png")
    data = {"type": "NortonImageFolder", "root": str(tmp_path / "data"), "preprocessing": {"input_size": (3, 16, 16)}}
    loader = {"batch_size": 4, "num_workers": 0, "collate_fn": {"type": "collate_batch"}}
    sampler = {"type": "DefaultSampler", "shuffle": True}
    config = Config(
        {
            "custom_imports": {"imports": ["norton_plugin.mm"]},
            "model": {
                "type": "TimmClassifier",
                "model": {"spec": "timm:resnet10t", "num_classes": 2, "input_size": 16},
            },
            "train_dataloader": {**loader, "dataset": {**data, "training": True}, "sampler": sampler},
            "train_cfg": {"by_epoch": True, "max_epochs": 2},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01}},
            "val_dataloader": {**loader, "dataset": data, "sampler": {**sampler, "shuffle": False}},
            "val_cfg": {},
            "val_evaluator": {"type": "TopKAccuracy", "topk": 1},
            "work_dir": str(tmp_path / "work"),
            "default_scope": "mmengine",
            "log_level": "ERROR",
        }
    )
    with preserved_process():
        runner = Runner.from_cfg(config)
        runner.train()
        assert runner.val()["accuracy/top1"] in (0.0, 12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5, 100.0)
    assert (tmp_path / "work" / "epoch_2.pth").is_file()
