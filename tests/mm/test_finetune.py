import logging
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock, CPDBlock3d, CPDLinear, SpatialSVDBlock
from norton_plugin.errors import RecipeError, SourceError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from norton_plugin.mm import FinetuneSettings, PackedImages, TimmClassifier, evaluate, finetune, parameter_groups
from norton_plugin.mm.runner import levels
from norton_plugin.mm.runner.levels import level_of

SETTINGS = FinetuneSettings(
    epochs=3, optimizer="SGD", lr=0.05, batch_size=16, warmup_epochs=0.5, crop_padding=1, flip=True, weight_decay=1e-3
)


class Interrupted(Exception):
    """Raised in the middle of a run, in place of a power cut."""


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        CPDBlock(8, 8, 3, 2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, 3),
    )


@pytest.fixture(scope="module")
def data():
    """Bright top, bright bottom, or grey: three classes of noisy 6x6 images."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(96) % 3
    images = torch.randint(60, 190, (96, 1, 6, 6), generator=generator)
    images[labels == 0, :, :3] += 60
    images[labels == 1, :, 3:] += 60
    return PackedImages(images.to(torch.uint8), labels)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def difference(a, b):
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a.values(), b.values(), strict=True))


def test_it_learns_and_tells_each_epoch(data):
    model, told = net(), []
    before = evaluate(model, data, mean=(0.5,), std=(0.2,))
    result = finetune(
        model,
        data,
        data,
        settings=SETTINGS,
        mean=(0.5,),
        std=(0.2,),
        epochs=8,
        on_epoch=lambda r, n: told.append((r, n)),
    )
    after = evaluate(model, data, mean=(0.5,), std=(0.2,))
    assert before.top1 < 50 < 90 < after.top1
    assert after.top1 == result.last_top1 == result.history[-1].top1
    assert [record for record, _ in told] == list(result.history)
    assert [(record.epoch, total) for record, total in told] == [(i, 8) for i in range(1, 9)]
    assert result.history[-1].loss < result.history[0].loss


def test_every_parameter_of_a_cpd_block_moves(data):
    model = net()
    before = state(model)
    finetune(model, data, settings=SETTINGS, epochs=1)
    for name in ("3.head", "3.vertical", "3.horizontal", "3.bias"):
        assert not torch.equal(before[name], model.state_dict()[name])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_that_of_the_settings(data, smoothing):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    images = (data.images / 255 - 0.5) / 0.2
    expected = nn.functional.cross_entropy(model(images), data.labels, label_smoothing=smoothing)
    options = {"epochs": 1, "lr": 1e-9, "batch_size": 96, "label_smoothing": smoothing}
    [record] = finetune(model, data, mean=(0.5,), std=(0.2,), **options).history
    assert record.loss == pytest.approx(float(expected), rel=1e-5)


def test_a_model_of_timm_starts_from_the_weights_it_has(data):
    """mmengine's Runner asks models to initialise themselves, and those of timm draw new weights."""
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    model = timm.create_model("test_resnet", in_chans=1, num_classes=3)
    assert callable(model.init_weights)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    finetune(model, data, epochs=1, lr=1e-8, batch_size=48)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ema", [0.0, 0.1])
@pytest.mark.parametrize(("optimizer", "level"), [("SGD", "filter"), ("AdamW", "filter"), (None, "cluster")])
def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path, optimizer, level, ema):
    settings = SETTINGS.replace(optimizer=optimizer, ema=ema, lr=0.01)
    whole, broken, resumed = net_at(level), net_at(level), net_at(level)
    expected = finetune(whole, data, data, settings=settings)

    def interrupt(record, total):
        if record.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        finetune(broken, data, data, settings=settings, work_dir=tmp_path, on_epoch=interrupt)
    assert difference(state(resumed), state(whole)) > 0
    got = finetune(resumed, data, data, settings=settings, work_dir=tmp_path, resume=True)
    assert difference(state(resumed), state(whole)) == 0.0
    assert [(r.epoch, r.loss, r.top1) for r in got.history] == [(r.epoch, r.loss, r.top1) for r in expected.history]


def test_ema_ends_with_the_average_that_was_measured(data):
    plain, averaged = net(), net()
    finetune(plain, data, data, settings=SETTINGS)
    result = finetune(averaged, data, data, settings=SETTINGS, ema=0.02)
    assert difference(state(plain), state(averaged)) > 1e-3
    assert evaluate(averaged, data).top1 == result.last_top1


def test_same_seed_same_weights_other_seed_other_weights(data):
    first, second, third = net(), net(), net()
    finetune(first, data, settings=SETTINGS, epochs=1)
    finetune(second, data, settings=SETTINGS, epochs=1)
    finetune(third, data, settings=SETTINGS, epochs=1, seed=1)
    assert difference(state(first), state(second)) == 0.0
    assert difference(state(first), state(third)) > 0


def test_distillation_pulls_towards_the_teacher(data):
    teacher = net()
    finetune(teacher, data, settings=SETTINGS, epochs=8)
    torch.manual_seed(5)
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    images = data.images.float() / 255

    def gap():
        with torch.no_grad():
            return float((student.eval()(images).softmax(1) - teacher.eval()(images).softmax(1)).abs().mean())

    before = gap()
    finetune(student, data, settings=SETTINGS, teacher=teacher, distill_weight=1.0, epochs=20)
    assert gap() < 0.7 * before


def test_the_callers_process_is_as_before(data, tmp_path, capsys):
    from mmengine.logging import MMLogger

    model = net().train()
    threads, level, loggers = torch.get_num_threads(), logging.getLogger().level, dict(MMLogger._instance_dict)
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    finetune(model, data, data, settings=SETTINGS, epochs=1, work_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]
    assert (torch.get_num_threads(), logging.getLogger().level) == (threads, level)
    assert MMLogger._instance_dict == loggers
    assert model[0].weight.is_contiguous()
    assert not model.training
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert list(tmp_path.rglob("*.log"))


def test_evaluate_changes_nothing(data):
    model = net().train()
    model[1].eval()
    before = state(model)
    first, second = evaluate(model, data, batch_size=7), evaluate(TimmClassifier(model), data)
    assert (first.top1, first.n) == (second.top1, 96)
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert first.top5 == 100.0
    assert difference(before, state(model)) == 0.0
    assert [m.training for m in model] == [True, False, True, True, True, True, True, True]


def test_factors_decay_less():
    model = net()
    model[0].weight.requires_grad_(False)
    plain, factors = parameter_groups(model, weight_decay=0.3)
    assert (plain["weight_decay"], factors["weight_decay"]) == (0.3, pytest.approx(0.1))
    assert [tuple(p.shape) for p in factors["params"]] == [(8, 2, 8), (8, 2, 3), (8, 2, 3)]
    assert len(plain["params"]) == 6


BLOCKS = {
    "filter": lambda: CPDBlock(8, 8, 3, 2, padding=1),
    "cluster": lambda: CPDBlock(8, 8, 3, 4, clusters=2, padding=1),
    "layer": lambda: CPDBlock(8, 8, 3, 8, clusters=1, padding=1),
    "layer, 1x1": lambda: CPDBlock(8, 8, 1, 4, clusters=1),
    "layer, groups": lambda: CPDBlock(8, 8, 3, 2, clusters=2, padding=1, groups=2),
    "spatial": lambda: SpatialSVDBlock(8, 8, 3, 8, padding=1),
}


def net_at(level):
    """The network with its block at a level."""
    model = net()
    torch.manual_seed(1)
    model[3] = BLOCKS[level]() if level in BLOCKS else nn.Conv2d(8, 8, 3, padding=1)
    if level == "linear":
        model[7] = CPDLinear(32, 3, 2)
    return model


def test_a_block_of_three_axes_decays_by_its_four_factors():
    model = nn.Sequential(CPDBlock3d(4, 6, 3, 2), CPDBlock3d(4, 6, 3, 5, clusters=1))
    groups = parameter_groups(model, weight_decay=0.02)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [
        (2, 0.02),
        (5, pytest.approx(0.02 / 5)),
        (4, pytest.approx(0.02 / 4)),
    ]


def test_every_factor_decays_by_the_number_of_factors():
    """The products shrink as their dense weights would; a number counts for all alike."""
    model = nn.ModuleList([*(make() for make in BLOCKS.values()), CPDLinear(8, 8, 2), nn.Conv2d(4, 4, 1)])
    weights = [module.weight.detach().clone() for module in model]
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=0.01), lr=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0025, 0.01 / 3, 0.005])
    assert [len(group["params"]) for group in optimizer.param_groups] == [6 + 3, 12, 3, 6]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for module, weight in zip(model, weights, strict=True):
        torch.testing.assert_close(module.weight, weight * (1 - 0.1 * 0.01), rtol=1e-5, atol=1e-7)
    plain, factors = parameter_groups(model, weight_decay=0.3, factor_decay=1 / 3)
    assert (len(plain["params"]), len(factors["params"])) == (9, 21)
    assert (plain["weight_decay"], factors["weight_decay"]) == (0.3, pytest.approx(0.1))


CHOICES = {
    "dense": ("SGD", 1e-2, 0.9, 5e-4, 0.0),
    "filter": ("AdamW", 2e-2, 0.5, 1e-3, 0.6),
    "cluster": ("AdamW", 5e-3, 0.5, 1e-3, 0.6),
    "layer": ("AdamW", 5e-3, 0.5, 1e-3, 0.6),
    "layer, 1x1": ("AdamW", 5e-3, 0.5, 1e-3, 0.6),
    "layer, groups": ("AdamW", 5e-3, 0.5, 1e-3, 0.6),
    "spatial": ("AdamW", 5e-3, 0.5, 1e-3, 0.6),
    "linear": ("AdamW", 5e-3, 0.5, 1e-3, 0.6),
}


@pytest.mark.parametrize("level", CHOICES)
def test_the_level_of_the_model_chooses_how_it_is_trained(level):
    model, settings = net_at(level), FinetuneSettings(epochs=4)
    assert level_of(model) == {"linear": "layer"}.get(level, level.partition(",")[0])
    choice = settings.choice_for(model)
    assert (choice.optimizer, choice.lr, choice.momentum, choice.weight_decay) == CHOICES[level][:4]
    assert choice.warmup_epochs == pytest.approx(CHOICES[level][4])
    given = settings.replace(optimizer="SGD", lr=0.3, weight_decay=0.0, warmup_epochs=0.0).choice_for(model)
    assert (given.optimizer, given.lr, given.weight_decay, given.warmup_epochs) == ("SGD", 0.3, 0.0, 0.0)
    assert settings.replace(lr=0.3).choice_for(model) == replace(choice, lr=0.3)


def test_the_page_shows_the_defaults(repository):
    rows = re.findall(
        r"^\| (\w+) \| (SGD|AdamW) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$",
        (repository / "docs/method.md").read_text(),
        re.M,
    )
    shown = [(level, name, *map(float, numbers)) for level, name, *numbers in rows]
    table = [(level, name, *numbers) for level, names in levels._TABLE.items() for name, numbers in names.items()]
    assert shown == table
    assert [level_of(net_at(level)) for level in levels._TABLE] == list(levels._TABLE)


def test_of_mixed_levels_the_one_with_the_lowest_rate_counts():
    model = net_at("filter")
    model.append(CPDLinear(3, 3, 1))
    assert (level_of(net_at("filter")), level_of(model)) == ("filter", "layer")
    model = net_at("filter")
    model.append(SpatialSVDBlock(3, 3, 3, 1))
    assert level_of(model) == "spatial"


@pytest.mark.parametrize("level", ["filter", "cluster", "layer", "spatial"])
def test_it_learns_with_the_defaults_of_its_level(data, level):
    model = net_at(level)
    before = evaluate(model, data, mean=(0.5,), std=(0.2,))
    result = finetune(model, data, data, mean=(0.5,), std=(0.2,), epochs=8, batch_size=16)
    assert before.top1 < 50 < 90 < result.last_top1 and result.history[-1].loss < 0.7 * result.history[0].loss
    assert (result.settings.optimizer, result.settings.lr) == CHOICES[level][:2]


def test_a_third_of_the_decay_shrinks_the_product_as_the_weight():
    block = CPDBlock(4, 4, 3, 2)
    before, (_, group) = block.weight.detach().clone(), parameter_groups(block, weight_decay=0.01)
    optimizer = torch.optim.SGD([group], lr=0.1)
    for factor in group["params"]:
        factor.grad = torch.zeros_like(factor)
    optimizer.step()
    shrinkage = 1 - float((block.weight / before).mean())
    assert shrinkage == pytest.approx(0.1 * 0.01, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected an integer of at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"learning_rat": 0.1}, "unknown fine-tuning setting 'learning_rat'"),
        ({"batchsize": 8}, "did you mean batch_size"),
        ({"momentum": 1.0}, "momentum is 1.0, expected at least 0 and below 1"),
        ({"optimizer": "sgd"}, "expected one of SGD, AdamW"),
        ({"warmup_epochs": 3}, r"below epochs \(3\)"),
        ({"distill_weight": 2}, r"in \[0, 1\]"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"factor_decay": "third"}, "factor_decay is 'third', expected a number of at least 0, or 'auto'"),
    ],
)
def test_impossible_settings(data, changes, message):
    with pytest.raises(RecipeError, match=message):
        finetune(net(), data, settings=SETTINGS, **changes)


def test_bad_input(data):
    with pytest.raises(RecipeError, match="resume needs the work_dir"):
        finetune(net(), data, resume=True)
    with pytest.raises(RecipeError, match="amp needs a CUDA device"):
        finetune(net(), data, amp=True, device="cpu")
    with pytest.raises(SourceError, match="images have 1 channels, but mean and std are given for 3"):
        finetune(net(), data, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(SourceError, match="no parameter that requires a gradient"):
        finetune(net().requires_grad_(False), data)
    with pytest.raises(SourceError, match="a label is 12, but the model has 3 outputs"):
        finetune(net(), PackedImages(data.images, data.labels + 10))
    with pytest.raises(SourceError, match="a label is 12, but the model has 3 outputs"):
        evaluate(net(), PackedImages(data.images, data.labels + 10))
    with pytest.raises(SourceError, match="no images"):
        finetune(net(), torch.utils.data.Subset(data, []))


def test_a_loss_of_nan_ends_the_run(data):
    with pytest.raises(RecipeError, match="became NaN or infinite in epoch 1; lower lr"):
        finetune(net(), data, settings=SETTINGS, lr=1e30)


def test_a_model_that_takes_views_of_maps_is_evaluated():
    class Viewed(nn.Sequential):
        def forward(self, x):
            maps = self[0](x)
            return self[1](maps.view(len(maps), -1))

    torch.manual_seed(0)
    data = PackedImages(torch.randint(0, 256, (12, 3, 6, 6), dtype=torch.uint8), torch.arange(12) % 3)
    model = Viewed(nn.Conv2d(3, 4, 3), nn.Linear(64, 3))
    plain = evaluate(model, data, channels_last=False)
    assert evaluate(model, data).loss == pytest.approx(plain.loss, rel=1e-6)


def test_a_model_that_takes_views_of_maps_is_trained_in_contiguous_format(data):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
            self.head = nn.Linear(4 * 6 * 6, 3)

        def forward(self, x):
            x = self.conv(x)
            return self.head(x.view(len(x), -1))

    def trained(**changes):
        torch.manual_seed(0)
        model = Views()
        return model, finetune(model, data, settings=FinetuneSettings(epochs=1, batch_size=16, **changes))

    model, result = trained()
    assert not result.settings.channels_last
    plain, _ = trained(channels_last=False)
    assert difference(state(model), state(plain)) == 0.0
