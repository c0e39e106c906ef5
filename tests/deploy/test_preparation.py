"""A model made ready for inference: the same outputs, forms as chosen, the given model untouched."""

import json
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

import norton_plugin.deploy as deploy
from norton_plugin.blocks import FORMS, CPDBlock, CPDLinear
from norton_plugin.deploy import LatencyRatio, choices, measured, preparation, prepare, read_table
from norton_plugin.deploy.table import BlockChoice, DeploymentTable
from norton_plugin.errors import ArtifactError, RecipeError, SurgeryError


class Net(nn.Module):
    """Blocks of every level with norms, and a plain convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.own = nn.Sequential(CPDBlock(6, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.shared = nn.Sequential(CPDBlock(8, 8, 3, 3, clusters=2, stride=2), nn.BatchNorm2d(8))
        self.shared[0].slot = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        self.head = CPDLinear(8, 5, 3)

    def forward(self, x):
        return self.head(self.shared(self.own(self.stem(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made.eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 11, 11, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def timed(monkeypatch):
    """Replaces the stopwatch: seconds of the forms of each block, then of the whole models."""
    seen = []

    def use(forms: dict[str, float], whole: tuple[float, ...] = (0.02, 0.03)):
        def blocks(calls, **_):
            seen.append([call() for call in calls])
            return LatencyRatio(tuple(forms[form] for form in FORMS), (1.0,) * 4, 5)

        def models(calls, **_):
            seen.append([call() for call in calls])
            return LatencyRatio(whole, (1.0,) * len(whole), 5)

        monkeypatch.setattr(measured, "compare_latency", blocks)
        monkeypatch.setattr(preparation, "compare_latency", models)
        return seen

    return use


def same(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_static(net, image):
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    prepared = prepare(net, image)
    assert net.training and all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(isinstance(m, CPDBlock | CPDLinear | nn.BatchNorm2d) for m in prepared.model.modules())
    assert not any(m.training for m in prepared.model.modules())
    assert prepared.folded == ("stem.1", "own.1", "shared.1") and prepared.left == () and prepared.milliseconds == {}
    assert [(c.name, c.milliseconds) for c in prepared.table] == [("own.0", None), ("shared.0", None), ("head", None)]
    assert prepared.table[2].form == "linear" and all(c.reason for c in prepared.table)
    same(prepared.model(image), net.eval()(image))


def test_without_folding(net, image):
    prepared = prepare(net, image, fold=False)
    assert prepared.folded == () and sum(isinstance(m, nn.BatchNorm2d) for m in prepared.model.modules()) == 3
    assert not prepared.deployment.folded
    same(prepared.model(image), net(image))


@pytest.mark.parametrize("best", FORMS)
def test_measured_keeps_the_fastest_form_with_its_norm_folded(net, image, timed, best):
    seconds = {form: 0.001 if form == best else 0.002 for form in FORMS}
    seen = timed(seconds)
    prepared = prepare(net, image, forms="measured")
    assert [(c.name, c.form, c.milliseconds) for c in prepared.table[:2]] == [
        ("own.0", best, 1.0),
        ("shared.0", best, 1.0),
    ]
    assert prepared.table[0].candidates == pytest.approx({form: 1e3 * value for form, value in seconds.items()})
    assert prepared.milliseconds == pytest.approx({"contiguous": 20, "channels_last": 30})
    same(prepared.model(image), net(image))
    # Every form was timed as it will run: with the norm, on the input that the block gets.
    with torch.no_grad():
        expected = net.own[1](net.own[0](net.stem(image)))
    for output in seen[0]:
        same(output, expected)
    assert len(seen) == 2 * 2 + 1
    reason = prepared.table[0].reason
    assert ("all factored forms are slower, measured" if best == "dense" else "2.00x as fast") in reason


class FlatNet(nn.Module):
    """Flattens a map by a view, which is an error in channels-last format."""

    def __init__(self):
        super().__init__()
        self.own = nn.Sequential(CPDBlock(3, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.shared = CPDBlock(8, 8, 3, 3, clusters=2, padding=1)
        self.head = nn.Linear(8 * 6 * 6, 4)

    def forward(self, x):
        maps = self.shared(self.own(x))
        return self.head(maps.view(len(maps), -1))


@pytest.mark.parametrize("how", ["static", "measured", "table"])
def test_a_model_that_takes_views_of_maps_stays_contiguous(how, monkeypatch):
    torch.manual_seed(0)
    net, image = FlatNet().eval(), torch.randn(2, 3, 6, 6)
    monkeypatch.setattr(preparation, "static_memory_format", lambda model, inputs: "channels_last")
    forms = how
    if how == "table":
        chosen = {"own.0": "dense", "shared": "grouped"}
        blocks = tuple(BlockChoice(name, form, None, "") for name, form in chosen.items())
        forms = DeploymentTable(blocks, memory_format="channels_last")
    prepared = prepare(net, image, forms=forms, rounds=1)
    assert prepared.deployment.memory_format == "contiguous"
    assert set(prepared.milliseconds) == ({"contiguous"} if how == "measured" else set())
    if how == "table":
        assert prepared.deployment.forms == chosen
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(image), net(image))
        assert prepared.model(image[:1]).shape == (1, 4)


def test_forms_are_chosen_again_where_the_memory_format_is_another(monkeypatch):
    net, image = FlatNet().eval(), torch.randn(2, 3, 6, 6)
    monkeypatch.setattr(preparation, "static_memory_format", lambda model, inputs: "channels_last")

    def form_for(block, x):
        return ("depthwise" if x.is_contiguous(memory_format=torch.channels_last) else "dense"), "by layout"

    monkeypatch.setattr(choices, "form_for", form_for)
    prepared = prepare(net, image)
    assert prepared.deployment.forms == {"own.0": "dense", "shared": "dense"}
    assert isinstance(prepared.model.shared, nn.Conv2d) and prepared.folded == ("own.1",)
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(image), net(image))


def test_a_model_of_2d_and_3d_convolutions_is_laid_out_as_a_whole(timed):
    timed(dict.fromkeys(FORMS, 0.001), (0.03, 0.02))

    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = CPDBlock(3, 8, 3, 2, padding=1)
            self.deep = nn.Conv3d(8, 2, 1)

        def forward(self, x):
            return self.deep(self.conv(x).unsqueeze(2))

    net, image = Volume().eval(), torch.randn(1, 3, 6, 6)
    prepared = prepare(net, image, forms="measured", rounds=1)
    assert prepared.deployment.memory_format == "channels_last"
    assert prepared.model.deep.weight.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(image), net(image))


@pytest.mark.parametrize(
    ("layers", "size", "expected"),
    [
        ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()], (9, 9), "channels_last"),
        ([CPDBlock(3, 8, 3, 2)], (9, 9), "channels_last"),
        ([nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8)], (5, 9, 9), "contiguous"),
        ([nn.Conv1d(3, 8, 3)], (9,), "contiguous"),
        ([nn.Linear(3, 8)], (9, 3), "contiguous"),
    ],
    ids=["conv2d", "block", "conv3d", "conv1d", "linear"],
)
def test_models_of_2d_convolutions_get_their_channels_last_on_a_cpu(layers, size, expected):
    net, image = nn.Sequential(*layers).eval(), torch.randn(1, 3, *size)
    prepared = prepare(net, image)
    assert prepared.deployment.memory_format == expected
    with torch.no_grad():
        same(prepared.model(image), net(image))


def raw(maps):
    """Read maps as if they were contiguous, whatever they are."""
    return maps.as_strided(maps.shape, torch.empty(maps.shape).stride())


def refuse(maps):
    """Take contiguous maps alone."""
    if not maps.is_contiguous():
        raise ValueError("not contiguous")
    return maps


@pytest.mark.parametrize("how", ["static", "measured"])
@pytest.mark.parametrize(
    "read",
    [
        raw,
        refuse,
        lambda maps: torch.where(torch.arange(7) < 2, -torch.inf, raw(maps)),
        lambda maps: torch.where(torch.arange(7) < 2, torch.nan, raw(maps)),
        lambda maps: raw(maps).argmax(1),
        lambda maps: maps.view(len(maps) * 2, -1, 7, 7) if len(maps) > 1 else maps,
    ],
    ids=["as it lies", "raises", "minus infinity", "nan", "whole numbers", "views of several"],
)
def test_a_model_that_computes_something_else_with_its_channels_last_stays_contiguous(how, read):
    class Reader(nn.Sequential):
        def forward(self, x):
            return read(super().forward(x))

    net, image = Reader(nn.Conv2d(3, 8, 3)).eval(), torch.randn(1, 3, 9, 9)
    prepared = prepare(net, image, forms=how, rounds=1)
    assert prepared.deployment.memory_format == "contiguous"
    for batch in (1, 2):
        images = torch.randn(batch, 3, 9, 9)
        with torch.no_grad():
            torch.testing.assert_close(prepared.model(images), net(images), equal_nan=True)


def test_the_faster_memory_format_is_kept(net, image, timed):
    timed(dict.fromkeys(FORMS, 0.001), (0.03, 0.02))
    prepared = prepare(net, image, forms="measured")
    assert prepared.deployment.memory_format == "channels_last"
    weight = prepared.model.stem[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    same(prepared.model(image), net(image))


def test_blocks_of_one_size_are_measured_once(timed, image):
    seen = timed(dict.fromkeys(FORMS, 0.001))
    net = nn.Sequential(nn.Conv2d(3, 6, 3), *(CPDBlock(6, 6, 3, 2, padding=1) for _ in range(3))).eval()
    assert len(prepare(net, image, forms="measured").table) == 3 and len(seen) == 2 + 1


def test_a_compiled_model_is_kept_where_it_is_faster(net, image, timed, monkeypatch):
    monkeypatch.setattr(torch, "compile", nn.Sequential)
    timed(dict.fromkeys(FORMS, 0.001), (0.03, 0.03, 0.02, 0.03))
    prepared = prepare(net, image, forms="measured", compile=True)
    assert prepared.deployment.compiled and isinstance(prepared.model, nn.Sequential)
    assert prepare(net, image, forms=prepared.deployment).deployment.compiled
    timed(dict.fromkeys(FORMS, 0.001), (0.02, 0.03, 0.02, 0.03))
    assert not prepare(net, image, forms="measured", compile=True).deployment.compiled


def test_a_table_is_taken_over_elsewhere(net, image, timed, tmp_path, monkeypatch):
    timed({"separable": 0.002, "grouped": 0.001, "depthwise": 0.002, "dense": 0.002}, (0.03, 0.02))
    prepared = prepare(net, image, forms="measured")
    prepared.deployment.write(tmp_path / "forms.json")
    table = read_table(tmp_path / "forms.json")
    assert table == prepared.deployment and [path.name for path in tmp_path.iterdir()] == ["forms.json"]
    monkeypatch.setattr(measured, "compare_latency", None)
    monkeypatch.setattr(preparation, "compare_latency", None)
    again = prepare(net, image, forms=table)
    assert torch.equal(again.model(image), prepared.model(image))
    assert [(c.form, c.reason) for c in again.table[:2]] == [("grouped", "as given")] * 2
    assert again.model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_that_was_only_pruned_is_folded(image, timed):
    timed({}, (0.01, 0.02))
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).eval()
    prepared = prepare(net, image, forms="measured")
    assert prepared.table == () and prepared.folded == ("1",)


def test_wrong_requests_are_refused(net, image):
    with pytest.raises(RecipeError, match="expected 'static', 'measured', or a table"):
        prepare(net, image, forms="fast")
    with pytest.raises(RecipeError, match="names the block 'x', which the model does not have"):
        prepare(net, image, forms={"x": "dense"})
    with pytest.raises(RecipeError, match="the form of own.0 is 'quick'; expected one of"):
        prepare(net, image, forms={"own.0": "quick"})
    with pytest.raises(SurgeryError, match="does not run on the example inputs"):
        prepare(net, image[:, :2])
    with pytest.raises(SurgeryError, match="is itself a CPDBlock"):
        prepare(net.own[0], image)
    assert prepare(net, image, forms={"own.0": "separable"}).table[0].form == "separable"


DAMAGE = {
    "no JSON": lambda data: "{",
    "another file": lambda data: "{}",
    "another version": lambda data: {**data, "version": 2},
    "no blocks": lambda data: {**data, "blocks": {}},
    "an unknown form": lambda data: {**data, "blocks": [{"name": "a", "form": "__init__"}]},
    "no name": lambda data: {**data, "blocks": [{"form": "dense"}]},
    "text for milliseconds": lambda data: {**data, "blocks": [{"name": "a", "form": "dense", "milliseconds": "1"}]},
    "another memory format": lambda data: {**data, "memory_format": "other"},
    "a word for a flag": lambda data: {**data, "compiled": "yes"},
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_tables_are_refused(case, tmp_path):
    data = deploy.DeploymentTable(()).to_dict()
    path = tmp_path / "forms.json"
    path.write_text(json.dumps(data))
    assert read_table(path).blocks == ()
    damaged = DAMAGE[case](data)
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with pytest.raises(RecipeError, match="forms.json"):
        read_table(path)


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "forms.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        deploy.DeploymentTable(()).write(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_runs_by_its_methods_is_not_compiled(net, image, timed, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", nn.Sequential)
    timed(dict.fromkeys(FORMS, 0.001), (0.03, 0.03, 0.02, 0.03))
    table = replace(prepare(net, image).deployment, compiled=True)
    for forms in ("measured", table):
        found = prepare(net, image, forms=forms, compile=forms == "measured", forward_fn=lambda model, x: model(x))
        assert not found.deployment.compiled and type(found.model) is type(net)
    assert caplog.text.count("runs by methods of its own") == 2
