"""The sequential pass over small networks, and what is kept of it."""

import copy
import re
import threading

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import compress
from norton_plugin.blocks import CPDBlock, CPDLinear
from norton_plugin.calibration import calibrate_
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.recipe import Calibration, Decomposition, Distillation, Pruning, Recipe, Scope
from norton_plugin.surgery import decompose_
from tests.networks import Residual, settle


def images(count: int = 48, *, seed: int = 0, size: int = 8) -> list[Tensor]:
    """Smooth images in batches of 8: neighbours are correlated, as in photographs."""
    noise = torch.randn(count, 3, size // 2, size // 2, generator=torch.Generator().manual_seed(seed))
    return list(nn.functional.interpolate(noise, scale_factor=2, mode="bilinear").split(8))


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return settle(Residual(8))


def compressed(model: nn.Module, **settings) -> nn.Module:
    found = copy.deepcopy(model)
    decompose_(
        found, Decomposition(**{"level": "layer", "components": 5} | settings), scope=Scope(include=("layers.*",))
    )
    return found


@torch.no_grad()
def error(model: nn.Module, other: nn.Module, batches: list[Tensor]) -> float:
    a, b = (torch.cat([m(x) for x in batches]) for m in (model, other))
    return float((a - b).square().sum() / (a - a.mean(0)).square().sum())


@pytest.mark.parametrize(
    "settings",
    [
        {"level": "layer", "components": 5},
        {"level": "filter", "rank": 1, "components": None},
        {"level": "cluster", "clusters": 2, "components": 6},
    ],
    ids=lambda settings: settings["level"],
)
def test_new_images_are_closer_to_the_dense_model(settings):
    model = network()
    own = compressed(model, **settings)
    plain = copy.deepcopy(own)
    report = calibrate_(model, own, images(96), example_inputs=images(2)[0], positions=64)
    others = images(seed=9)
    assert error(model, own, others) < 0.6 * error(model, plain, others)
    assert report.chosen.startswith("fitted") and report.divergence[report.chosen] < report.divergence["plain"]
    blocks = [layer for layer in report.layers if layer.decomposed]
    assert [layer.name for layer in blocks] == [f"layers.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    assert [layer.target for layer in blocks] == ["output", "stream"] * 2
    assert all(layer.nmse_after < layer.nmse_before for layer in blocks)
    assert (report.images, report.held_back) == (88, 8)
    assert dict(report.left)["stem"] == "it sees what it sees in the dense model"


def test_exact_factors_change_nothing():
    """At full rank everything is as in the dense model: targets, corrections and statistics have nothing to do."""
    model = network()
    own = compressed(model, level="filter", rank=9, components=None, allow_more_macs=True)
    report = calibrate_(model, own, images(), example_inputs=images(2)[0])
    assert error(model, own, images(seed=9)) < 1e-8
    assert max(layer.nmse_after for layer in report.layers) < 1e-6
    assert report.divergence["fitted, norms corrected"] < 1e-6


class Stream(nn.Module):
    """A stream to which one convolution adds, by way of a norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.norm(self.conv(x))).mean((2, 3))


def test_a_later_layer_repairs_the_stream():
    """A stream of half the size needs W' = 2 W + I / a, a the scale of the norm: within reach of the convolution."""
    torch.manual_seed(0)
    model = settle(Stream())
    own = copy.deepcopy(model)
    for parameter in own.stem.parameters():
        parameter.data.mul_(0.5)
    assert error(model, own, images(seed=9)) > 0.05
    only = {"admits": lambda name: name == "conv", "norms": False}
    report = calibrate_(model, own, images(), example_inputs=images(2)[0], positions=64, **only)
    assert [(layer.name, layer.target) for layer in report.layers] == [("conv", "stream")]
    assert error(model, own, images(seed=9)) < 1e-4
    identity = torch.zeros(4, 4, 3, 3)
    identity[range(4), range(4), 1, 1] = (model.norm.running_var + model.norm.eps).sqrt() / model.norm.weight
    torch.testing.assert_close(own.conv.weight, 2 * model.conv.weight + identity, rtol=0.05, atol=0.05)


def test_operations_that_differ_from_the_examples_give_the_plain_target():
    """A model whose code takes another way for larger batches: the stream is not where the example showed it."""

    class Moody(Stream):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if len(x) > 2:
                x = x.mean(1, keepdim=True).expand(-1, 4, -1, -1)
            x = x * 2
            return (x + self.norm(self.conv(x))).mean((2, 3))

    torch.manual_seed(0)
    model = settle(Moody())
    own = copy.deepcopy(model)
    decompose_(own, Decomposition(level="layer", components=3), scope=Scope(include=("conv",)))
    report = calibrate_(model, own, images(), example_inputs=images(2)[0])
    [layer] = [layer for layer in report.layers if layer.decomposed]
    assert (layer.target, layer.note) == (
        "output",
        "the operations of a calibration batch are not those of the example",
    )


def test_the_same_seed_gives_the_same_weights_and_random_states_stay():
    model = network()
    states = []
    for seed in (0, 0, 1):
        own = compressed(model)
        before = torch.get_rng_state()
        calibrate_(model, own, images(), example_inputs=images(2)[0], positions=5, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        states.append(own.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_the_dense_model_and_all_flags_stay():
    model = network()
    own = compressed(model)
    own.layers[0].train()
    own.layers[1].conv1.form = "grouped"
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in own.modules()]
    threads = threading.active_count()
    calibrate_(model, own, images(), example_inputs=images(2)[0])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in own.modules()] == modes
    assert own.layers[1].conv1.form == "grouped"
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (model, own) for m in net.modules())
    assert threading.active_count() == threads


class Shared(nn.Module):
    """A convolution that is called twice, one that values reach by choice, and a Linear layer; no norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)
        self.chosen = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.head(x)) + self.head(nn.functional.avg_pool2d(x, 2)).mean((2, 3), keepdim=True)
        rows = x.flatten(2).transpose(1, 2)
        order = rows.sum(-1).topk(3).indices
        picked = torch.gather(rows, 1, order[..., None].expand(-1, -1, 8))
        return self.fc(torch.relu(self.chosen(picked)).sum(1))


def test_shared_layers_choices_and_linear_layers():
    torch.manual_seed(1)
    model = Shared().eval()
    own = copy.deepcopy(model)
    decompose_(own, Decomposition(level="layer", components=3, linear=True, allow_more_macs=True))
    assert isinstance(own.chosen, CPDLinear) and isinstance(own.head, CPDBlock)
    report = calibrate_(model, own, images(96), example_inputs=images(2)[0], positions=16)
    found = {layer.name: layer for layer in report.layers}
    assert list(found) == ["stem", "head", "chosen", "fc"]
    assert found["head"].note == "it is called 2 times"
    # 88 images; 16 positions of the first call and all of the second.
    assert found["head"].samples == 88 * 32
    assert found["chosen"].target == found["fc"].target == "symmetric"
    assert all(layer.nmse_after <= layer.nmse_before for layer in report.layers)
    assert found["stem"].nmse_after < 0.9 * found["stem"].nmse_before


def test_weights_that_cannot_be_set_are_left_with_the_reason():
    torch.manual_seed(1)
    model = Shared().eval()
    nn.utils.parametrizations.weight_norm(model.stem)
    model.fc.weight = model.chosen.weight
    own = copy.deepcopy(model)
    decompose_(own, Decomposition(level="layer", components=3, allow_more_macs=True), scope=Scope(include=("head",)))
    report = calibrate_(model, own, images(16), example_inputs=images(2)[0])
    assert [layer.name for layer in report.layers] == ["head"]
    left = dict(report.left)
    assert left["stem"] == "its weight is computed from its parameters"
    assert left["fc"] == left["chosen"] == "another layer has the same weight"


def test_few_samples_are_told_with_the_number_that_would_do():
    model = network()
    report = calibrate_(model, compressed(model), images(16), example_inputs=images(2)[0], positions=4)
    # 8 images, 4 positions each: 32 samples for 8 * 9 inputs, of which ten times as many are wanted.
    assert "32 samples of 72 numbers" in report.few_samples and "About 180 images would do" in report.few_samples
    start = r"\d of \d layers saw fewer than 10 samples for each number that they read, the fewest "
    assert re.match(start, report.few_samples) and report.few_samples.endswith("positions: auto)")
    enough = calibrate_(model, compressed(model), images(96), example_inputs=images(2)[0], positions=64)
    assert enough.few_samples == ""


def test_dict_inputs_and_batches_of_every_kind():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, *, pixels: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(pixels)}

    model = Named().eval()
    own = copy.deepcopy(model)
    decompose_(own, Decomposition(level="layer", components=5), scope=Scope(include=("net.layers.*",)))
    plain = copy.deepcopy(own)
    batches = [{"pixels": x} for x in images(96)]
    report = calibrate_(model, own, batches, example_inputs=batches[0])
    assert report.images == 88
    others = images(seed=9)
    assert error(model.net, own.net, others) < error(model.net, plain.net, others)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [((0.1, 0.2, 0.3), "plain"), ((0.3, 0.1, 0.2), "fitted"), ((0.3, float("nan"), 0.2), "fitted, norms corrected")],
)
def test_what_does_not_help_is_undone(monkeypatch, measured, chosen):
    model = network()
    own = compressed(model)
    before, values, states = copy.deepcopy(own.state_dict()), iter(measured), []

    def read(comparison, other):
        states.append(copy.deepcopy(own.state_dict()))
        return next(values)

    monkeypatch.setattr("norton_plugin.calibration.calibrate.Comparison.of", read)
    report = calibrate_(model, own, images(), example_inputs=images(2)[0])
    assert report.chosen == chosen
    expected = states[["plain", "fitted", "fitted, norms corrected"].index(chosen)]
    assert all(torch.equal(value, expected[key]) for key, value in own.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items()) == (chosen == "plain")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda x: [], "holds no image"),
        (lambda x: [x[0], x[1][:, :2]], "does not run on"),
        (lambda x: [x[0], x[1][:, :2], x[2]], "does not run on"),
        (lambda x: [x[0], x[1] * float("nan"), x[2]], "stem reads .* not finite"),
    ],
)
def test_a_failure_leaves_everything_as_it_was(batches, message):
    model = network()
    own = compressed(model)
    before = copy.deepcopy(own.state_dict())
    threads = threading.active_count()
    with pytest.raises(SurgeryError, match=message):
        calibrate_(model, own, batches(images()), example_inputs=images(2)[0])
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert threading.active_count() == threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (model, own) for m in net.modules())


def test_compress_fits_where_the_recipe_asks_for_it(tmp_path):
    model, example = network(), images(2)[0]
    recipe = Recipe(
        scope=Scope(include=("layers.*",)),
        decomposition=Decomposition(level="layer", components=5),
        calibration=Calibration(fit=True, images=64),
    )
    result = compress(model, example, recipe, calibration=iter(images(96)))
    assert (result.report.calibration.images, result.report.calibration.held_back) == (56, 8)
    assert result.report.calibration_images == 0
    plain = compress(model, example, Recipe(scope=recipe.scope, decomposition=recipe.decomposition)).model
    others = images(seed=9)
    assert error(model, result.model, others) < 0.8 * error(model, plain, others)
    stored = result.report.to_dict()["calibration"]
    assert stored["chosen"] == result.report.calibration.chosen and stored["layers"][0]["name"] == "layers.0.conv1"
    result.save(tmp_path / "artefact")
    with pytest.raises(RecipeError, match="needs unlabelled images"):
        compress(model, example, recipe)


def test_the_fit_follows_the_pruning():
    model, example = network(), images(2)[0]
    recipe = Recipe(
        decomposition=Decomposition(level="layer", components=5),
        pruning=Pruning(keeps={"layers.*.conv1": 0.5}, round_to=1),
        calibration=Calibration(fit=True, images=64),
    )
    result = compress(model, example, recipe, calibration=images(96))
    assert result.report.calibration is not None and result.report.calibration_images == 0
    assert result.model.layers[0].conv1.out_channels == 4
    assert "layers.0.conv2" in {layer.name for layer in result.report.calibration.layers}


class Pyramid(nn.Module):
    """A map that a coarser one, brought to its size, is added to; the size is that of the images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(8, 8, 1)
        self.fine = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        coarse = self.coarse(self.down(x))
        fine = self.fine(x)
        return (fine + nn.functional.interpolate(coarse, size=fine.shape[-2:])).mean((2, 3))


@pytest.mark.parametrize(("size", "target"), [(8, "stream"), (12, "output")])
def test_images_of_another_size_than_the_example(size, target):
    torch.manual_seed(0)
    model = settle(Pyramid())
    own = copy.deepcopy(model)
    decompose_(own, Decomposition(level="layer", components=5))
    report = calibrate_(model, own, images(size=size), example_inputs=images(2)[0], positions=64)
    found = {layer.name: layer for layer in report.layers}
    assert found["fine"].target == target
    assert ("of the example's size" in found["fine"].note) == (target == "output")


class _ImageByImage(nn.Module):
    """Prepares each image by itself, as detectors of torchvision do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.stack([(image + 1) * 2 - 2 for image in x]) / 2)


def test_what_runs_for_every_image_hides_no_stream():
    model = network()
    own, wrapped = compressed(model), compressed(model)
    expected = calibrate_(model, own, images(), example_inputs=images()[0][:1])
    found = calibrate_(_ImageByImage(model), _ImageByImage(wrapped), images(), example_inputs=images()[0][:1])
    assert [layer.target for layer in found.layers] == [layer.target for layer in expected.layers]
    assert any(layer.target == "stream" for layer in found.layers)
    for mine, other in zip(own.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_the_model_keeps_nothing_of_the_images():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls, self.last = network(), 0, None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = self.body(x)
            return self.last

    model = settle(Counting())
    seen: list[int] = []
    for fit in (False, True):
        before = model.calls
        recipe = Recipe(
            decomposition=Decomposition(level="layer", components=5),
            calibration=Calibration(fit=fit),
            distillation=Distillation(passes=int(fit)),
        )
        compress(model, images(2)[0], recipe, calibration=images())
        seen.append(model.calls - before)
    assert seen[0] == seen[1]  # those of the checks alone, on the example
    assert model.last is None or len(model.last) == 2
